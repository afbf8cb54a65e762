"""Some images of a run, turned into features to be timed; and what is made up from those."""

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.features.class_map import read_class_map
from gadc.features.encoders import Encoder
from gadc.features.extract import extract
from gadc.features.store import FEATURES_NAME, ITEMS_NAME, ROWS_NAME, FeatureSet
from gadc.features.tensors import Shapes, map_tensors, tensor_file_bytes
from gadc.images.source import ImageIndex, Reader
from gadc.runs.cost_model import line_through
from gadc.runs.inputs import ImageSettings
from gadc.runtime import generator

N_BLOCKS = 8
"""Images are sampled in so many runs of neighbours, which lie together in parquet and tar files."""
FEW_IMAGES, MANY_IMAGES = 64, 4096


@dataclass(frozen=True, eq=False)
class FeatureTrial:
    """What turning some images into features showed.

    Attributes:
        features: Theirs, in memory.
        n_sampled: How many images.
        seconds: For all images, without loading the encoder.
        disk_bytes: Of the finished folder.
        peak_disk_bytes: While it is made: parts, and the folder made of them.
    """

    features: FeatureSet
    n_sampled: int
    seconds: float
    disk_bytes: int
    peak_disk_bytes: int


@dataclass(frozen=True)
class _SomeImages:
    """The reader of a part of an index."""

    reader: Reader
    positions: list[int]

    def read(self, position: int) -> bytes:
        return self.reader.read(self.positions[position])

    def path(self, position: int) -> str | None:
        return self.reader.path(self.positions[position])


def try_features(
    index: ImageIndex, encoder: Encoder, settings: ImageSettings, *, seconds: float
) -> FeatureTrial:
    """Turn a sample of images into features, twice, and tell what all of them would take.

    After a warm-up. The difference of a small and a larger sample is the time per image.

    Args:
        index: All images.
        encoder: Loaded.
        settings: How images are read.
        seconds: About how long it may take.
    """
    n_few = len(sampled(len(index), FEW_IMAGES))
    _extract_some(index, encoder, settings, max(1, n_few // 4))
    few_seconds, sample, files = _extract_some(index, encoder, settings, n_few)
    n_many = min(MANY_IMAGES, max(2 * n_few, int(n_few * seconds / few_seconds)))
    n_many = len(sampled(len(index), n_many))
    all_seconds = few_seconds
    if n_many > n_few:
        many_seconds, sample, files = _extract_some(index, encoder, settings, n_many)
        all_seconds = line_through(n_few, few_seconds, n_many, many_seconds, len(index))
    tensors, parts = files.tensor_bytes(len(index), encoder.n_components)
    finished = tensors + files.items_bytes * len(index) // sample.n_images
    return FeatureTrial(sample, n_many, all_seconds, finished, finished + parts)


def _extract_some(
    index: ImageIndex, encoder: Encoder, settings: ImageSettings, n_images: int
) -> tuple[float, FeatureSet, "_Files"]:
    """Return the time, the features in memory, and what lies in the folder."""
    positions = sampled(len(index), n_images)
    some = dataclasses.replace(
        index,
        ids=[index.ids[position] for position in positions],
        labels=None if index.labels is None else index.labels[positions],
        excluded=[],
        quarantined=[],
        reader=_SomeImages(index.reader, positions),
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        found = extract(
            some,
            encoder,
            Path(folder),
            max_bad=1.0,
            batch_size=settings.batch_size,
            decode_workers=settings.decode_workers,
            policy=settings.policy,
            class_map=None if settings.class_map is None else read_class_map(settings.class_map),
        )
        seconds = time.monotonic() - began
        probabilities = found.probabilities
        in_memory = dataclasses.replace(
            found,
            features=np.array(found.features),
            probabilities=None if probabilities is None else np.array(probabilities),
        )
        files = _read_files(Path(folder))
    return seconds, in_memory, files


def sampled(n_images: int, n_wanted: int) -> list[int]:
    """Return about so many positions, in `N_BLOCKS` runs of neighbours from the first to the last.

    All of them, if no fewer are wanted.
    """
    if n_wanted >= n_images:
        return list(range(n_images))
    block = -(-n_wanted // N_BLOCKS)
    starts = np.linspace(0, n_images - block, N_BLOCKS).astype(int)
    return [int(place) for place in np.unique(starts[:, None] + np.arange(block))]


def _read_files(folder: Path) -> "_Files":
    tensors, metadata = map_tensors(folder / FEATURES_NAME)
    rows = map_tensors(folder / ROWS_NAME)[0] if (folder / ROWS_NAME).exists() else {}
    return _Files(
        {name: (each.values.shape, each.values.dtype) for name, each in tensors.items()},
        metadata,
        {name: (each.values.shape, each.values.dtype) for name, each in rows.items()},
        (folder / ITEMS_NAME).stat().st_size,
    )


@dataclass(frozen=True, eq=False)
class _Files:
    """What lies in a finished folder: tensors, those of rows if they differ, and the items."""

    shapes: Shapes
    metadata: dict[str, str]
    row_shapes: Shapes
    items_bytes: int

    def tensor_bytes(self, n_images: int, n_components: int | None) -> tuple[int, int]:
        """Return the bytes of all images' tensor files, exact, and about those of the parts."""

        def resized(shapes: Shapes) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
            return {name: ((n_images, *shape[1:]), kind) for name, (shape, kind) in shapes.items()}

        shapes, rows = resized(self.shapes), resized(self.row_shapes)
        if n_components is not None:  # a small sample has fewer directions
            n_columns = min(n_components, rows["rows"][0][1])
            shapes["features"] = (n_images, n_columns), shapes["features"][1]
        row_bytes = tensor_file_bytes(rows, {}) if rows else 0
        parts = rows or {name: shape for name, shape in shapes.items() if name != "labels"}
        return tensor_file_bytes(shapes, self.metadata) + row_bytes, tensor_file_bytes(parts, {})


def stand_in(
    sample: FeatureSet, labels: NDArray[np.int64] | None, n_images: int, *, seed: int = 0
) -> FeatureSet:
    """Return features made up in the likeness of a sample's, for a class that has none yet.

    Each lies at random on the line between two of the sample, of its own class where the sample
    has enough of it. Only the time of a search is judged by them.

    Args:
        sample: Features of some images.
        labels: Of the features wanted [n], of the sample's classes; None without.
        n_images: n.
        seed: For the lines.
    """
    numbers = generator(seed, "stand-in")
    owners = np.zeros(n_images, dtype=np.int64) if labels is None else labels
    first, second = np.empty((2, n_images), dtype=np.int64)
    for label in np.unique(owners).tolist():
        known = np.arange(sample.n_images)
        if sample.labels is not None and (sample.labels == label).sum() >= FEW_IMAGES // 2:
            known = np.flatnonzero(sample.labels == label)
        rows = np.flatnonzero(owners == label)
        first[rows], second[rows] = numbers.choice(known, (2, len(rows)))
    share = numbers.random((n_images, 1), dtype=np.float32)
    values = np.asarray(sample.features)
    names = [str(row) for row in range(n_images)]
    return dataclasses.replace(
        sample,
        ids=names,
        paths=names,
        features=values[first] + share * (values[second] - values[first]),
        labels=labels,
        probabilities=None if sample.probabilities is None else sample.probabilities[first],
        sha256=None,
        excluded=[],
        quarantined=[],
        n_scanned=n_images,
    )
