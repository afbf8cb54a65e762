"""From samples and a reference to every number, each with the protocol it was made by."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.evaluation import inception
from gadc.evaluation.encoding import (
    IMAGES_KEY,
    Size,
    as_tensor,
    check_alike,
    common_size,
    comparable_rows,
    encode,
    encoder_of,
)
from gadc.evaluation.inception import load_inception
from gadc.evaluation.judged import Judged, described
from gadc.evaluation.memorisation import Memorisation, Rule, memorisation
from gadc.evaluation.pairs_sheet import pairs_sheet, shown
from gadc.evaluation.sample import Sample
from gadc.evaluation.scores import Score, Space, scores, space_of
from gadc.features.encoders import DEFAULT_ENCODER, Encoder, available_encoders, load_encoder
from gadc.features.rows import FeatureRows
from gadc.images.decode import MOST_PIXELS_PER_SIDE
from gadc.images.part import part_of
from gadc.runtime import ProgressStyle, pick_device
from gadc.storage import digest, exclusive, prepare_output, write_bytes, write_json

RESULT_NAME = "evaluation.json"
SHEET_NAME = "memorisation.png"
SCHEMA_VERSION = 1
ENCODER_ALIASES = {"dinov2": DEFAULT_ENCODER}
OFFLINE_REMEDY = "; offline, --encoder pixels needs no download (weaker features)"
ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation is made.

    Attributes:
        size_px: All images are scaled and cropped to this square first; None: all must have the
            size of the generated ones.
        pairwise_images: Measures that compare images pair by pair look at so many of either set at
            most; None for all.
        rule: How near-copies are told; see `gadc.evaluation.memorisation.memorisation`.
        seed: Of what is drawn: splits, subsets, the images that are compared pair by pair.
        batch_size: Images per forward pass on a GPU.
        decode_workers: Threads that read and decode.
        device: Where to compute: `auto`, `cpu`, `cuda` or `cuda:<index>`.
    """

    size_px: int | None = None
    pairwise_images: int | None = None
    rule: Rule = "ratio"
    seed: int = 0
    batch_size: int = 64
    decode_workers: int = 2
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.pairwise_images is not None and self.pairwise_images < 2:
            raise InputError(
                "bad_argument", f"pairwise_images={self.pairwise_images} must be at least 2"
            )
        if self.size_px is not None and not 1 <= self.size_px <= MOST_PIXELS_PER_SIDE:
            raise InputError(
                "bad_argument",
                f"size_px={self.size_px} must lie between 1 and {MOST_PIXELS_PER_SIDE}",
            )


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All numbers of a set of generated images.

    Attributes:
        scores: The measures, in the order of tables.
        memorisation: None unless training and held-out images were given.
        protocol: What the numbers depend on: encoder, weights, sizes, sources and their digests.
        out: Where `evaluation.json` is, and the pictures.
        result: The contents of that file.
    """

    scores: list[Score]
    memorisation: Memorisation | None
    protocol: dict[str, Any]
    out: Path
    result: dict[str, Any]


def load_judge(name: str, *, weights: Path | None = None, device: str = "auto") -> Encoder:
    """Load the encoder in whose space images are judged.

    Args:
        name: `inception`, `dinov2`, or what `gadc.features.encoders.load_encoder` takes.
        weights: A file, for the encoders that take one.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.

    Raises:
        InputError: `unknown_encoder`, or one that can't be loaded.
        MissingExtraError: A library is not installed; the message names the extra.
    """
    try:
        if name == inception.NAME:
            return load_inception(weights, pick_device(device))
        return load_encoder(ENCODER_ALIASES.get(name, name), weights=weights, device=device)
    except InputError as error:
        if error.code in ("missing_extra", "unreadable_encoder", "unreadable_weights"):
            raise type(error)(error.code, error.message + OFFLINE_REMEDY) from error
        if error.code == "unknown_encoder":
            known = [inception.NAME, *ENCODER_ALIASES, *available_encoders()]
            raise InputError(
                error.code, f"encoder {name!r} is not known; valid are {', '.join(known)}"
            ) from error
        raise


def evaluate(
    generated: Judged,
    real: Judged,
    out: Path,
    *,
    load: Callable[[], Encoder],
    training: Judged | None = None,
    held_out: Judged | None = None,
    settings: EvaluationSettings | None = None,
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> Evaluation:
    """Judge generated images by real ones, and by what the model was trained on.

    The features of each set are kept in `out` (`generated`, `real`, `training`, `held_out`): a
    second run finds them, and `out/real` can be the reference of the next evaluation.

    Args:
        generated: The samples, from `open_judged`.
        real: The reference.
        out: A folder for `evaluation.json`, features and pictures; outside the sources.
        load: Loads the encoder; called only if there are images without features.
        training: What the model was trained on, for the test of memorisation.
        held_out: Of the same distribution, but never trained on; needed with `training`. Images
            that are in `training` as well are left out.
        settings: Default: `EvaluationSettings()`.
        wait_seconds: How long to wait for another process that writes to `out`.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: `image_sizes`, `encoder_mismatch`, `too_few_rows`, `option_conflict`, or images
            that can't be used.
        RunError: `locked`, `disk_full`; what is computed is kept.
    """
    settings = settings or EvaluationSettings()
    if (training is None) != (held_out is None):
        raise InputError(
            "option_conflict",
            "memorisation is told by training and by held-out images; give both or neither",
        )
    sets = [judged for judged in (generated, real, training, held_out) if judged is not None]
    if generated.index is None and generated.features is None:
        raise InputError(
            "too_few_rows",
            f"{generated.source} holds statistics alone, which only the reference may be; give "
            "images or features",
        )
    prepare_output(out, *(judged.source for judged in sets))
    with exclusive(out, wait_seconds=wait_seconds):
        needs_encoder = any(s.index is not None and s.features is None for s in sets)
        encoder = load() if needs_encoder else None
        size = common_size(generated, settings.size_px)
        encoded = [_encoded(judged, encoder, size, out, settings, show) for judged in sets]
        with_rows = [judged for judged in encoded if judged.features is not None]
        check_alike(with_rows)
        fingerprint = _fingerprint(with_rows)
        space = space_of(None if fingerprint is None else fingerprint["name"])
        _check_moments(real, space)
        rows = _rows_by_name(with_rows)
        device = pick_device(settings.device)
        found = scores(
            generated=rows["generated"],
            real=rows.get("real"),
            moments=real.moments,
            space=space,
            pairwise_images=settings.pairwise_images,
            seed=settings.seed,
            device=device,
        )
        protocol = _protocol(encoded, fingerprint, size, settings)
        result: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "protocol": protocol,
            "protocol_sha256": _digest(protocol),
            "scores": {score.name: score.as_json() for score in found},
            "memorisation": None,
        }
        copied = None
        if training is not None:
            copied, result["memorisation"] = _memorisation(
                {judged.name: judged for judged in encoded}, rows, space, out, settings, device
            )
        write_json(out / RESULT_NAME, result)
    return Evaluation(found, copied, protocol, out, result)


def _encoded(
    judged: Judged,
    encoder: Encoder | None,
    size: Size | None,
    out: Path,
    settings: EvaluationSettings,
    show: ProgressStyle,
) -> Judged:
    return encode(
        judged,
        encoder,
        size,
        out / judged.name,
        batch_size=settings.batch_size,
        decode_workers=settings.decode_workers,
        show=show,
    )


def _fingerprint(sets: list[Judged]) -> dict[str, Any] | None:
    """Return the encoder that the features come from, if one of the sets says it."""
    return next((found for judged in sets if (found := encoder_of(judged)) is not None), None)


def _check_moments(real: Judged, space: Space) -> None:
    if real.moments is not None and not space.is_inception:
        raise InputError(
            "encoder_mismatch",
            f"{real.source} holds Inception's statistics; use the encoder {inception.NAME}, or a "
            "reference of images",
        )


def _rows_by_name(sets: list[Judged]) -> dict[str, FeatureRows]:
    # The reference's axes, where features are principal components: the same for every model.
    ordered = sorted(sets, key=lambda judged: judged.name != "real")
    rows = comparable_rows(ordered)
    return {judged.name: found for judged, found in zip(ordered, rows, strict=True)}


def _protocol(
    sets: list[Judged],
    fingerprint: dict[str, Any] | None,
    size: Size | None,
    settings: EvaluationSettings,
) -> dict[str, Any]:
    encoder = {key: value for key, value in (fingerprint or {}).items() if key != IMAGES_KEY}
    unknown = [s.name for s in sets if s.features is not None and encoder_of(s) is None]
    return {
        "encoder": encoder or None,
        "images": (fingerprint or {}).get(IMAGES_KEY) or (size.as_json() if size else None),
        "sets": {judged.name: described(judged) for judged in sets},
        "encoder_not_known_of": unknown,
        "pairwise_images": settings.pairwise_images,
        "seed": settings.seed,
        "versions": {
            "gadc": importlib.metadata.version("gadc"),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "torch": torch.__version__,
        },
    }


def _digest(protocol: dict[str, Any]) -> str:
    """Return the digest of what numbers depend on: where a set was found is no part of that."""
    sets = {
        name: {key: found[key] for key in found if key not in ("source", "kind")}
        for name, found in protocol["sets"].items()
    }
    return digest({**protocol, "sets": sets})


def _memorisation(
    sets: dict[str, Judged],
    rows: dict[str, FeatureRows],
    space: Space,
    out: Path,
    settings: EvaluationSettings,
    device: torch.device,
) -> tuple[Memorisation, dict[str, Any]]:
    unseen = _unseen_rows(sets["training"], sets["held_out"])
    found = memorisation(
        generated=_sample(rows["generated"], "generated", space, device),
        training=_sample(rows["training"], "training", space, device),
        held_out=_sample(rows["held_out"], "held_out", space, device, unseen),
        rule=settings.rule,
    )
    names = {
        name: sets[name].features.ids  # type: ignore[union-attr]
        for name in ("generated", "training")
    }
    held_out_ids = sets["held_out"].features.ids  # type: ignore[union-attr]
    names["held_out"] = [held_out_ids[row] for row in unseen.tolist()]
    result: dict[str, Any] = {
        "rule": found.rule,
        "threshold": found.threshold,
        "near_copies": found.near_copies,
        "near_copies_by_chance": found.near_copies_by_chance,
        "closer_to_training": found.closer_to_training,
        "closer_by_chance": found.closer_by_chance,
        "n_training": len(names["training"]),
        "n_held_out": len(unseen),
        "n_held_out_left_out": len(held_out_ids) - len(unseen),
        "worst": shown(found.worst, names),
        "pictures": None,
    }
    indexes = [sets[name].index for name in ("generated", "training", "held_out")]
    if all(index is not None for index in indexes):
        samples, trained, others = (index for index in indexes if index is not None)
        unseen_images = part_of(others, names["held_out"], [None] * len(unseen))
        sheet = pairs_sheet(
            found.worst, generated=samples, training=trained, held_out=unseen_images
        )
        write_bytes(out / SHEET_NAME, sheet)
        result["pictures"] = SHEET_NAME
    return found, result


def _unseen_rows(training: Judged, held_out: Judged) -> NDArray[np.int64]:
    """Return which held-out images are not training images too, where their digests are known."""
    trained, others = training.features, held_out.features
    if trained is None or others is None:
        raise InputError(
            "too_few_rows", "memorisation needs images or features, not statistics alone"
        )
    if trained.sha256 is None or others.sha256 is None:
        return np.arange(others.n_images, dtype=np.int64)
    known = set(trained.sha256)
    return np.array([row for row, sha in enumerate(others.sha256) if sha not in known], np.int64)


def _sample(
    rows: FeatureRows,
    name: str,
    space: Space,
    device: torch.device,
    chosen: NDArray[np.int64] | None = None,
) -> Sample:
    chosen = np.arange(len(rows), dtype=np.int64) if chosen is None else chosen
    if not len(chosen):
        raise InputError("too_few_rows", f"{name}: all images are training images; give others")
    blocks = [
        np.asarray(rows[chosen[start : start + ROWS_AT_A_TIME]])[:, space.features]
        for start in range(0, len(chosen), ROWS_AT_A_TIME)
    ]
    return Sample(as_tensor(np.concatenate(blocks), device), name)
