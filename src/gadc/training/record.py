"""`training.json`: what a run was asked for and trained on, for those who go on or sample."""

import dataclasses
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.storage import digest, write_json
from gadc.training.conditions import Conditions
from gadc.training.config import DEFAULT_PROJECTION_DEPTH, TrainConfig
from gadc.training.images import TrainingImages
from gadc.training.spaces import DiffusionSpace
from gadc.training.tensor_files import load_tensors, save_tensors
from gadc.training.transformer import Size, TransformerShape

RECORD_NAME = "training.json"
TEXTS_NAME = "texts.safetensors"
SCHEMA_VERSION = 1
DIGEST_KEY = "digest"
LIBRARIES = ("torch", "numpy", "accelerate", "diffusers")


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run beside its weights.

    Attributes:
        config: What was asked for.
        shape: Of the network.
        class_names: Name of each class number; empty for a model without classes.
        n_images: Images trained on.
        images: Digest of which.
        space: Digest of what became of them.
        conditions: Digest of texts and targets; None without.
        versions: Of the libraries.
    """

    config: TrainConfig
    shape: TransformerShape
    class_names: list[str]
    n_images: int
    images: str
    space: str
    conditions: str | None
    versions: dict[str, str]

    def differences(self, other: Self) -> list[str]:
        """Say what would be another run, not the same one that goes on."""
        ours = self.config.model_dump(mode="json")
        theirs = other.config.model_dump(mode="json")
        found = []
        if self.config.identity != other.config.identity:
            fixed = type(self.config).fixed_fields()
            found += [
                f"{name}={theirs[name]!r} (was {ours[name]!r})"
                for name in fixed
                if ours[name] != theirs[name]
            ]
        if self.images != other.images or self.class_names != other.class_names:
            found.append("the images or their classes")
        if self.conditions != other.conditions:
            found.append("the attached conditions")
        if self.space != other.space:
            found.append("the VAE's weights")
        if not found and self.shape != other.shape:
            found.append("the shape of the model")
        return found

    def save(self, run: Path) -> None:
        """Write `training.json`, with a digest of what it says."""
        record = {
            **dataclasses.asdict(self),
            "config": self.config.model_dump(mode="json"),
            "schema": SCHEMA_VERSION,
        }
        write_json(run / RECORD_NAME, {**record, DIGEST_KEY: digest(record)})

    @classmethod
    def load(cls, run: Path) -> Self:
        """Read `training.json`.

        Raises:
            InputError: `no_run`: there is none; `bad_run`: it can't be used.
        """
        path = run / RECORD_NAME
        if not path.is_file():
            raise InputError("no_run", f"there is no {path}; `gadc train` writes it")
        try:
            stored = json.loads(path.read_bytes())
            # Earlier records have none.
            if stored.pop(DIGEST_KEY, None) not in (None, digest(stored)):
                raise ValueError("not what was written")
            if stored.pop("schema") != SCHEMA_VERSION:
                raise ValueError("another schema")
            shape = stored.pop("shape")
            size = Size(**shape.pop("size"))
            config = TrainConfig(**stored.pop("config"))
            return cls(config=config, shape=TransformerShape(size=size, **shape), **stored)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                "bad_run", f"{path} is no record of a training run ({error}); train again"
            ) from error


def describe(
    config: TrainConfig,
    images: TrainingImages,
    space: DiffusionSpace,
    conditions: Conditions | None,
) -> RunRecord:
    """Find out what network a run needs, and what identifies the run.

    Raises:
        InputError: `patch_grid`; `flip_without_mirror`: targets of one orientation, but images are
            flipped; `target_grid`: targets of another grid; `projection_depth`.
    """
    parts = config.parts
    is_conditional = config.conditional and images.labels is not None
    text = None if conditions is None or not config.use_text else conditions.text
    visual = None if conditions is None or not config.projection_weight else conditions.visual
    shape = TransformerShape(
        size=parts.size,
        patch=parts.patch,
        side=space.side,
        channels=space.channels,
        channels_out=space.channels * parts.process.prediction_factor,
        n_classes=len(images.class_names) if is_conditional else 0,
        n_text_tokens=0 if text is None else text.shape[1],
        text_width=0 if text is None else text.shape[2],
        projection_width=0 if visual is None else visual.shape[3],
        projection_depth=config.projection_depth or min(DEFAULT_PROJECTION_DEPTH, parts.size.depth),
    )
    if visual is not None:
        _check_targets(visual, shape, flip=config.flip)
    return RunRecord(
        config=config,
        shape=shape,
        class_names=images.class_names if is_conditional else [],
        n_images=images.n_images,
        images=images.fingerprint,
        space=space.fingerprint,
        conditions=None if conditions is None else conditions.fingerprint,
        versions=_versions(),
    )


def _check_targets(visual: torch.Tensor, shape: TransformerShape, *, flip: bool) -> None:
    if visual.shape[2] != shape.n_tokens:
        raise InputError(
            "target_grid",
            f"visual targets have {visual.shape[2]} patches an image, the model "
            f"{shape.n_tokens}; attach targets for this resolution and patch size",
        )
    if flip and visual.shape[1] != 2:
        raise InputError(
            "flip_without_mirror",
            "the visual targets are of one orientation only, but images are flipped; attach both, "
            "or train without flips",
        )


def _versions() -> dict[str, str]:
    found = {}
    for name in ("gadc", *LIBRARIES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True, eq=False)
class RunTexts:
    """The texts that a model was trained with, by class.

    Attributes:
        text: [n_texts, n_tokens, width], masked.
        texts_of_class: Rows of `text` for each class; of a model without classes, one entry.
    """

    text: torch.Tensor
    texts_of_class: list[NDArray[np.int64]]

    @classmethod
    def load(cls, run: Path) -> Self:
        """Read what `save_texts` wrote."""
        tensors, _ = load_tensors(run / TEXTS_NAME)
        index, labels = tensors["text_index"].numpy(), tensors["labels"].numpy()
        n_classes = int(labels.max()) + 1
        return cls(
            tensors["text"], [np.unique(index[labels == label]) for label in range(n_classes)]
        )


def save_texts(
    run: Path, conditions: Conditions, labels: NDArray[np.int64] | None
) -> RunTexts | None:
    """Keep the texts of a run for sampling; None if there are none."""
    if conditions.text is None or conditions.text_index is None:
        return None
    n_images = len(conditions.ids)
    numbers = np.zeros(n_images, np.int64) if labels is None else labels
    tensors = {
        "text": conditions.text,
        "text_index": conditions.text_index,
        "labels": torch.from_numpy(numbers),
    }
    save_tensors(run / TEXTS_NAME, tensors, {})
    return RunTexts.load(run)
