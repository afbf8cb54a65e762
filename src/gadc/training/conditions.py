"""Texts and visual targets of training images: `conditions.safetensors` beside a subset.

Tensors, each optional but the first two come together:

- `text` [n_texts, n_tokens, width], any float type: token embeddings.
- `text_mask` [n_texts, n_tokens], uint8: 1 for tokens that belong to the text.
- `text_index` [n_images], int64: which text is an image's; texts of a class are stored once.
- `visual` [n_images, n_orientations, n_tokens, width], any float type: one target for each patch
  of the transformer, row by row; orientation 0 is the image, 1 its mirror image. Without the
  second, training must not flip.

Metadata: `gadc_conditions` = `1`; `ids` = JSON list of the images in the order of the rows, escaped
by `gadc.storage.escape_name`; `provenance` = JSON, what the embeddings come from.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.images.source import examples
from gadc.storage import canonical_json, digest, escape_name, unescape_name
from gadc.training.tensor_files import load_tensors, save_tensors

CONDITIONS_NAME = "conditions.safetensors"
SCHEMA_KEY, SCHEMA_VERSION = "gadc_conditions", "1"


@dataclass(frozen=True, eq=False)
class Conditions:
    """What images are trained with beside their class.

    Attributes:
        ids: Image of each row.
        text: [n_texts, n_tokens, width], zeros where a token is masked; None without texts.
        text_index: Text of each image, int64 [n]; None without texts.
        visual: [n, 1 or 2, n_tokens, width]; None without targets.
        provenance: What they come from.
    """

    ids: list[str]
    text: torch.Tensor | None = None
    text_index: torch.Tensor | None = None
    visual: torch.Tensor | None = None
    provenance: dict[str, Any] | None = None

    @property
    def has_both_orientations(self) -> bool:
        """Whether images may be mirrored."""
        return self.visual is None or self.visual.shape[1] == 2

    @property
    def fingerprint(self) -> str:
        """Digest of where they come from and of their shapes, for the record of a run."""
        shapes = [
            None if part is None else [list(part.shape), str(part.dtype)]
            for part in (self.text, self.visual)
        ]
        return digest([self.provenance, shapes, [escape_name(name) for name in self.ids]])

    def save(self, path: Path) -> None:
        """Write the file; masked tokens are those whose embedding is zero."""
        tensors: dict[str, torch.Tensor] = {}
        if self.text is not None and self.text_index is not None:
            tensors["text"] = self.text
            tensors["text_mask"] = (self.text != 0).any(dim=2).to(torch.uint8)
            tensors["text_index"] = self.text_index
        if self.visual is not None:
            tensors["visual"] = self.visual
        metadata = {
            SCHEMA_KEY: SCHEMA_VERSION,
            "ids": canonical_json([escape_name(name) for name in self.ids]),
            "provenance": canonical_json(self.provenance or {}),
        }
        save_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and verify a file of conditions.

        Raises:
            InputError: `conditions_missing`, no such file; `bad_conditions`, another kind of file
                or tensors of other shapes.
            RunError: `corrupt`: not what was written.
        """
        if not path.is_file():
            raise InputError("conditions_missing", f"there is no {path}; `gadc attach` writes it")
        tensors, metadata = load_tensors(path)
        if metadata.get(SCHEMA_KEY) != SCHEMA_VERSION:
            raise InputError(
                "bad_conditions",
                f"{path} holds no conditions of schema {SCHEMA_VERSION}; `gadc attach` writes them",
            )
        ids = [unescape_name(name) for name in json.loads(metadata["ids"])]
        _check_shapes(path, tensors, len(ids))
        text = tensors.get("text")
        if text is not None:
            text = text * tensors["text_mask"][:, :, None].to(text.dtype)
        return cls(
            ids,
            text,
            tensors.get("text_index"),
            tensors.get("visual"),
            json.loads(metadata["provenance"]),
        )

    def of_images(self, ids: Sequence[str]) -> Self:
        """Return the conditions of some images, in their order.

        Raises:
            InputError: `conditions_mismatch`: some have none.
        """
        if list(ids) == self.ids:
            return self
        places = {name: row for row, name in enumerate(self.ids)}
        if missing := [name for name in ids if name not in places]:
            raise InputError(
                "conditions_mismatch",
                f"the conditions lack {len(missing)} of the {len(ids)} training images: "
                f"{examples(missing)}; attach them to this subset",
            )
        rows = torch.tensor([places[name] for name in ids])
        return type(self)(
            list(ids),
            self.text,
            None if self.text_index is None else self.text_index[rows],
            None if self.visual is None else self.visual[rows],
            self.provenance,
        )

    def texts(self, rows: NDArray[np.int64], drops: NDArray[np.bool_]) -> torch.Tensor | None:
        """Return float32 [b, n_tokens, width], zeros where dropped; None without texts."""
        if self.text is None or self.text_index is None:
            return None
        chosen = self.text[self.text_index[torch.from_numpy(rows)]].float()
        return chosen * torch.from_numpy(~drops)[:, None, None]

    def targets(self, rows: NDArray[np.int64], flips: NDArray[np.bool_]) -> torch.Tensor | None:
        """Return the targets of images as they are shown, float32 [b, n_tokens, width]."""
        if self.visual is None:
            return None
        orientations = torch.from_numpy(flips.astype(np.int64))
        return self.visual[torch.from_numpy(rows), orientations].float()


def _check_shapes(path: Path, tensors: dict[str, torch.Tensor], n_images: int) -> None:
    text, visual = tensors.get("text"), tensors.get("visual")
    problem = None
    if (text is None) != ("text_mask" not in tensors) or (text is None) != (
        "text_index" not in tensors
    ):
        problem = "text, text_mask and text_index belong together"
    elif text is not None and (
        text.ndim != 3
        or tensors["text_mask"].shape != text.shape[:2]
        or tensors["text_index"].shape != (n_images,)
        or not 0 <= int(tensors["text_index"].min()) <= int(tensors["text_index"].max()) < len(text)
    ):
        problem = "text must be [n_texts, n_tokens, width], its mask and index must fit it"
    elif visual is not None and (
        visual.ndim != 4 or visual.shape[0] != n_images or visual.shape[1] not in (1, 2)
    ):
        problem = f"visual must be [{n_images}, 1 or 2, n_tokens, width]"
    if problem:
        raise InputError("bad_conditions", f"{path}: {problem}; attach them again")


def find_conditions(given: Path | None, subset: Path) -> Path | None:
    """Return the file of conditions to use: the one given, or that beside the subset if any."""
    if given is not None:
        return given / CONDITIONS_NAME if given.is_dir() else given
    folder = subset if subset.is_dir() else subset.parent
    beside = folder / CONDITIONS_NAME
    return beside if beside.is_file() else None
