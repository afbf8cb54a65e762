"""What a user names on the command line, images or features, as one `FeatureSet`."""

import collections
import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from gadc.cluster.connection import Engine
from gadc.errors import InputError
from gadc.features.class_map import read_class_map
from gadc.features.components import principal_components, project
from gadc.features.encoders import DEFAULT_ENCODER, Encoder, load_encoder
from gadc.features.extract import OnError, extract
from gadc.features.formats import PICKLE_SUFFIXES
from gadc.features.shards import shard_paths
from gadc.features.store import ROWS_NAME, SUMMARY_NAME, FeatureSet, load_features
from gadc.features.tensors import map_tensors
from gadc.images.decode import AnimatedChoice, DecodePolicy
from gadc.images.index import open_index
from gadc.images.source import ImageIndex, LabelChoice, examples
from gadc.runtime import ProgressStyle

logger = logging.getLogger(__name__)

FEATURE_SUFFIXES = frozenset([".safetensors", ".npz", ".npy", *PICKLE_SUFFIXES])
"""Pickles are among them so that they are refused as what they are."""
OFFLINE_REMEDY = "; offline, --encoder pixels needs no download (weaker features)"
NOT_LOADED = frozenset(["missing_extra", "unreadable_encoder"])
ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class ImageSettings:
    """How images are found, read and turned into features.

    Attributes:
        encoder: See `gadc.features.encoders.load_encoder`.
        weights: See there.
        class_map: A JSON file; see `gadc.features.class_map.read_class_map`.
        labels: See `gadc.images.index.open_index`.
        image_column: See there.
        label_column: See there.
        follow_outside: See there.
        animated: See `gadc.images.decode.DecodePolicy`.
        min_side_px: See there.
        max_pixels: See there.
        on_error: See `gadc.features.extract.extract`.
        max_bad: See there.
        batch_size: See there.
        decode_workers: See there.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.
    """

    encoder: str = DEFAULT_ENCODER
    weights: Path | None = None
    class_map: Path | None = None
    labels: LabelChoice = "auto"
    image_column: str | None = None
    label_column: str | None = None
    follow_outside: bool = False
    animated: AnimatedChoice = "first"
    min_side_px: int = DecodePolicy.min_side_px
    max_pixels: int = DecodePolicy.max_pixels
    on_error: OnError = "quarantine"
    max_bad: float = 0.01
    batch_size: int = 64
    decode_workers: int = 2
    device: str = "auto"

    @property
    def policy(self) -> DecodePolicy:
        """What is accepted as an image."""
        return DecodePolicy(
            max_pixels=self.max_pixels, min_side_px=self.min_side_px, animated=self.animated
        )

    def index(self, data: Path) -> ImageIndex:
        """Find the images of `data`; their paths are absolute, so that they can be found later."""
        return open_index(
            Path(os.path.abspath(data)),
            labels=self.labels,
            image_column=self.image_column,
            label_column=self.label_column,
            follow_outside=self.follow_outside,
            on_error=self.on_error,
        )

    def load_encoder(self) -> Encoder:
        """Load the encoder; where it can't be loaded, the error names a way without a download."""
        try:
            return load_encoder(self.encoder, weights=self.weights, device=self.device)
        except InputError as error:
            if error.code not in NOT_LOADED:
                raise
            raise type(error)(error.code, error.message + OFFLINE_REMEDY) from error


def is_features(path: Path) -> bool:
    """Tell whether `path` holds features rather than images.

    A folder that `extract` wrote, or one of safetensors files; a file of arrays; or a parquet file
    with a column `features` or `f0` and so on.
    """
    if path.is_dir():
        return (path / SUMMARY_NAME).is_file() or bool(shard_paths(path))
    if path.suffix.lower() in FEATURE_SUFFIXES:
        return True
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    try:
        names = pyarrow.parquet.read_schema(path).names
    except (OSError, pyarrow.ArrowException):
        return False  # the reader of images has the better error
    return bool({"features", "f0"} & set(names))


def extract_features(
    data: Path,
    out: Path,
    settings: ImageSettings,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    show: ProgressStyle = "silent",
) -> FeatureSet:
    """Find the images of `data` and compute their features, or find them in the folder `out`.

    The encoder is loaded first: a name that can't be used must not cost a scan of a million files.

    Args:
        data: The images.
        out: The folder to fill.
        settings: How images are read.
        engine: See `gadc.features.extract.extract`.
        workers: See there.
        show: See there.
    """
    class_map = None if settings.class_map is None else read_class_map(settings.class_map)
    encoder = settings.load_encoder()
    index = settings.index(data)
    logger.info(
        "%s: %d images%s, %d excluded, %d bad so far",
        data,
        len(index),
        "" if index.labels is None else f" in {len(index.class_names)} classes",
        len(index.excluded),
        len(index.quarantined),
    )
    return extract(
        index,
        encoder,
        out,
        batch_size=settings.batch_size,
        max_bad=settings.max_bad,
        on_error=settings.on_error,
        decode_workers=settings.decode_workers,
        policy=settings.policy,
        class_map=class_map,
        engine=engine,
        workers=workers,
        weights=None if settings.weights is None else settings.weights.absolute(),
        show=show,
    )


def join_features(index: ImageIndex, features: FeatureSet, *, source: Path) -> FeatureSet:
    """Give the images of an index the features that somebody computed for them.

    Rows with ids are matched by id; rows without must be in the order of the index.

    Args:
        index: The images.
        features: What is known of them.
        source: Where `features` come from, for errors.

    Raises:
        InputError: Not the same images, or labels that contradict each other.
    """
    rows = _rows_of(index, features, source)
    labels, class_names = index.labels, index.class_names
    given = None if features.labels is None else features.labels[rows]
    if labels is None:
        labels, class_names = given, features.class_names
    elif given is not None:
        _check_labels(index, given, features.class_names, source)
    probabilities = features.probabilities
    if probabilities is not None and probabilities.shape[1] != len(class_names):
        raise InputError(
            "class_mismatch",
            f"{source} has probabilities of {probabilities.shape[1]} classes, {index.source} has "
            f"{len(class_names)} classes",
        )
    is_in_order = np.array_equal(rows, np.arange(features.n_images))
    return dataclasses.replace(
        features,
        ids=index.ids,
        # Indexing would read a memory map of any size.
        features=features.features if is_in_order else features.features[rows],
        labels=labels,
        class_names=class_names,
        probabilities=(
            probabilities if is_in_order or probabilities is None else probabilities[rows]
        ),
        sha256=None if features.sha256 is None else [features.sha256[row] for row in rows],
        paths=[index.path(position) for position in range(len(index))],
        excluded=index.excluded,
        quarantined=index.quarantined,
        n_scanned=index.n_scanned,
        provenance={**features.provenance, "images": str(index.source), "kind": index.kind},
    )


def _rows_of(index: ImageIndex, features: FeatureSet, source: Path) -> NDArray[np.int64]:
    n_rows = features.n_images
    if features.ids == [str(row) for row in range(n_rows)]:  # the file has no ids
        if n_rows != len(index):
            raise InputError(
                "length_mismatch",
                f"{source} has {n_rows} rows of features, {index.source} {len(index)} images; they "
                "must be the same images in the same order, or the file must have ids",
            )
        return np.arange(n_rows, dtype=np.int64)
    places = {name: row for row, name in enumerate(features.ids)}
    if missing := [name for name in index.ids if name not in places]:
        raise InputError(
            "length_mismatch",
            f"{source} has no features of {len(missing)} of the {len(index)} images of "
            f"{index.source}: {examples(missing)}",
        )
    return np.array([places[name] for name in index.ids], dtype=np.int64)


def _check_labels(
    index: ImageIndex, given: NDArray[np.int64], given_names: list[str], source: Path
) -> None:
    """Raise if two labellings of the same images differ, as names or, unnamed, as numbers."""
    if index.labels is None:
        return
    if set(index.class_names) & set(given_names):
        ours = np.array(index.class_names)[index.labels]
        theirs = np.array(given_names)[given]
    else:
        ours, theirs = index.labels, given
    differing = np.flatnonzero(ours != theirs)
    if differing.size:
        first = int(differing[0])
        raise InputError(
            "label_mismatch",
            f"{differing.size} labels of {source} are not those of {index.source}; the first: "
            f"{index.ids[first]} is {theirs[first]!s} there and {ours[first]!s} here",
        )


def comparable_target(
    target: FeatureSet, target_folder: Path, pool: FeatureSet, pool_folder: Path
) -> FeatureSet:
    """Return `target` with features in the coordinates of the pool's.

    Features that are principal components (`pixels`) have axes of their own in every data set; the
    rows behind the target's are projected on those of the pool.

    Raises:
        InputError: Different encoders, or no rows to project.
    """
    encoder, other = pool.provenance.get("encoder"), target.provenance.get("encoder")
    if encoder is None or other is None:  # somebody's own file: only its owner knows
        return target
    if encoder != other:
        raise InputError(
            "encoder_mismatch",
            f"{pool_folder} and {target_folder} come from different encoders or settings "
            f"({encoder['name']}, {other['name']}); extract both with the same",
        )
    n_components = encoder.get("n_components")
    if n_components is None:
        return target
    mean, directions = principal_components(
        lambda: _raw_blocks(pool_folder), n_components=n_components
    )
    blocks = [project(block, mean, directions) for block in _raw_blocks(target_folder)]
    return dataclasses.replace(target, features=np.concatenate(blocks))


def _raw_blocks(folder: Path) -> Iterator[NDArray[np.uint8]]:
    path = folder / ROWS_NAME
    if not path.is_file():
        raise InputError(
            "rows_missing",
            f"{folder} has no {ROWS_NAME}, which a comparison of two sets by this encoder needs; "
            "extract its features again",
        )
    tensors, _ = map_tensors(path)
    rows = tensors["rows"].values
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        yield rows[start : start + ROWS_AT_A_TIME]


def load_any(path: Path, *, labels_file: Path | None = None) -> FeatureSet:
    """Open features; an error for a missing path says that images would do as well."""
    if not path.exists():
        raise InputError("missing_source", f"there is no {path}; check the path")
    return load_features(path, labels=labels_file)


def count_names(names: Iterable[str]) -> dict[str, int]:
    """Return how often each name occurs, in the order of the names."""
    return dict(sorted(collections.Counter(names).items()))
