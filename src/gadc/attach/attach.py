"""Compute the conditions of a subset's images and store them beside it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from gadc.attach.parts import clear_parts, visual_targets
from gadc.attach.text import TextEncoder
from gadc.attach.visual import PatchEncoder
from gadc.errors import GadcError, InputError
from gadc.images.selected import SelectedImages
from gadc.images.source import ImageIndex
from gadc.runtime import ProgressStyle
from gadc.storage import digest, escape_name, exclusive, prepare_output
from gadc.subset import Subset
from gadc.training.conditions import CONDITIONS_NAME, Conditions

logger = logging.getLogger(__name__)

StoredType = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True, eq=False)
class TextPart:
    """Texts as training takes them.

    Attributes:
        embeddings: [n_texts, n_tokens, width], zeros for padding.
        index: Which text is an image's, int64 [n].
        provenance: What they come from.
    """

    embeddings: torch.Tensor
    index: torch.Tensor
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False)
class VisualPart:
    """Targets as training takes them.

    Attributes:
        targets: [n, 1 or 2, n_tokens, width].
        provenance: What they come from.
    """

    targets: torch.Tensor
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Attached:
    """What was attached.

    Attributes:
        path: The file of conditions.
        conditions: Its contents.
        n_texts_computed: Texts embedded by this run; the others were there.
        n_images_computed: Images encoded by this run.
    """

    path: Path
    conditions: Conditions
    n_texts_computed: int = 0
    n_images_computed: int = 0


def attach(
    subset: Subset,
    out: Path,
    *,
    index: ImageIndex | None = None,
    captions: Sequence[str] | None = None,
    text: TextEncoder | TextPart | None = None,
    visual: PatchEncoder | VisualPart | None = None,
    mirrored: bool = True,
    stored_type: StoredType = "float16",
    batch_size: int = 64,
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> Attached:
    """Write `conditions.safetensors`: texts, visual targets, or both, of a subset's images.

    What the file holds already of the same texts, images, encoders and settings is kept; a killed
    run goes on where it stopped. What is not asked for any more is left out.

    Args:
        subset: The images.
        out: An existing or new folder; the subset's own, for `gadc train` to find the file.
        index: The source they were selected from; needed for a `PatchEncoder`.
        captions: A text for each image; needed for a `TextEncoder`. Equal ones are stored once.
        text: Embeds the texts, or what was embedded elsewhere.
        visual: Encodes the images, or what was encoded elsewhere.
        mirrored: Targets of the mirror images too, without which training must not flip.
        stored_type: Number type of texts and targets in the file.
        batch_size: Inputs per forward pass on a GPU.
        wait_seconds: How long to wait for another process that uses the folder.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: `nothing_to_attach`, `length_mismatch`, `source_mismatch`, `source_changed`,
            `bad_image`.
        RunError: `locked`, `disk_full`, `no_space`, `features_not_finite`.
    """
    if text is None and visual is None:
        raise InputError("nothing_to_attach", "neither texts nor visual targets are asked for")
    if stored_type not in get_args(StoredType):
        raise InputError(
            "bad_choice", f"stored_type={stored_type!r}; use {', '.join(get_args(StoredType))}"
        )
    number_type: torch.dtype = getattr(torch, stored_type)
    prepare_output(out, *([index.source] if index is not None else []))
    with exclusive(out, wait_seconds=wait_seconds):
        path = out / CONDITIONS_NAME
        before = _before(path, subset)
        n_texts = n_images = 0
        if isinstance(text, TextEncoder):
            text, n_texts = _embedded(subset, captions, text, number_type, before)
        if isinstance(visual, PatchEncoder):
            visual, n_images = _encoded(
                subset,
                index,
                visual,
                out,
                before,
                mirrored=mirrored,
                stored_type=number_type,
                batch_size=batch_size,
                show=show,
            )
        conditions = _joined(subset, text, visual)
        if before is None or before.provenance != conditions.provenance:
            conditions.save(path)
        clear_parts(out)
    return Attached(path, conditions, n_texts, n_images)


def _joined(subset: Subset, text: TextPart | None, visual: VisualPart | None) -> Conditions:
    for name, rows in (
        ("texts", None if text is None else text.index),
        ("targets", None if visual is None else visual.targets),
    ):
        if rows is not None and len(rows) != subset.n_images:
            raise InputError(
                "length_mismatch", f"{len(rows)} {name} for the {subset.n_images} images"
            )
    return Conditions(
        ids=list(subset.paths),
        text=None if text is None else text.embeddings,
        text_index=None if text is None else text.index,
        visual=None if visual is None else visual.targets,
        provenance={
            "images": images_digest(subset),
            "text": None if text is None else text.provenance,
            "visual": None if visual is None else visual.provenance,
        },
    )


def images_digest(subset: Subset) -> str:
    """Return the digest of which images a subset has, in which order."""
    return digest([[escape_name(path) for path in subset.paths], list(subset.sha256)])


def _before(path: Path, subset: Subset) -> Conditions | None:
    """Return what an earlier run attached to these very images."""
    if not path.is_file():
        return None
    try:
        found = Conditions.load(path)
    except GadcError as error:
        logger.warning("%s; attached again", error.message)
        return None
    is_same = (found.provenance or {}).get("images") == images_digest(subset)
    # Without digests nobody knows whether the images are the same.
    return found if is_same and None not in subset.sha256 else None


def _embedded(
    subset: Subset,
    captions: Sequence[str] | None,
    encoder: TextEncoder,
    stored_type: torch.dtype,
    before: Conditions | None,
) -> tuple[TextPart, int]:
    if captions is None or len(captions) != subset.n_images:
        raise InputError(
            "length_mismatch",
            f"{0 if captions is None else len(captions)} captions for the {subset.n_images} images",
        )
    _check_unicode(subset, captions)
    texts = list(dict.fromkeys(captions))
    places = {caption: place for place, caption in enumerate(texts)}
    index = torch.tensor([places[caption] for caption in captions], dtype=torch.int64)
    provenance = {
        "encoder": encoder.fingerprint(),
        "texts_sha256": digest(list(captions)),
        "stored_type": str(stored_type).removeprefix("torch."),
    }
    known = None if before is None else (before.provenance or {}).get("text")
    if before is not None and before.text is not None and known == provenance:
        return TextPart(before.text, index, provenance), 0
    embeddings = encoder.encode(texts).to(stored_type)
    if not torch.isfinite(embeddings).all():
        raise InputError(
            "bad_choice", f"text embeddings go beyond {stored_type}; store float32 or bfloat16"
        )
    return TextPart(embeddings, index, provenance), len(texts)


def _check_unicode(subset: Subset, captions: Sequence[str]) -> None:
    """Refuse what a tokeniser can't take: undecodable bytes of a folder's name."""
    for path, caption in zip(subset.paths, captions, strict=True):
        if any("\ud800" <= character <= "\udfff" for character in caption):
            raise InputError(
                "bad_captions", f"the caption of {path!r} is not valid Unicode; give another one"
            )


def _encoded(
    subset: Subset,
    index: ImageIndex | None,
    encoder: PatchEncoder,
    out: Path,
    before: Conditions | None,
    *,
    mirrored: bool,
    stored_type: torch.dtype,
    batch_size: int,
    show: ProgressStyle,
) -> tuple[VisualPart, int]:
    if index is None:
        raise InputError(
            "source_unknown", "the subset doesn't say where its images are; give --source DATA"
        )
    provenance = {
        "encoder": encoder.fingerprint(),
        "orientations": ["as it is", "mirrored"] if mirrored else ["as it is"],
        "stored_type": str(stored_type).removeprefix("torch."),
    }
    images = SelectedImages(index, subset.paths, subset.sha256)
    known = None if before is None else (before.provenance or {}).get("visual")
    if before is not None and before.visual is not None and known == provenance:
        return VisualPart(before.visual, provenance), 0
    targets, n_computed = visual_targets(
        images,
        encoder,
        out,
        mirrored=mirrored,
        stored_type=stored_type,
        batch_size=batch_size,
        show=show,
    )
    return VisualPart(targets, provenance), n_computed
