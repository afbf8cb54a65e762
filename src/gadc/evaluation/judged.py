"""What is judged and what it is judged by: images or features, and statistics, by path."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.evaluation.frechet import FeatureStatistics
from gadc.features.shards import shard_paths
from gadc.features.store import SUMMARY_NAME, FeatureSet, load_features
from gadc.images.arrays import (
    StoredArray,
    holds_images,
    index_arrays,
    read_array,
    stored_arrays,
)
from gadc.images.index import open_index
from gadc.images.source import ImageIndex
from gadc.storage import digest, file_sha256

FEATURE_SUFFIXES = frozenset([".safetensors", ".npy"])
SAMPLES_RECORD = "samples.json"
SAMPLES_FOLDER = "images"
"""What `gadc sample` writes its images to, beside its record."""
MOMENT_NAMES = (("mu", "sigma"), ("mu_s", "sigma_s"))
"""In ADM's reference files: of the pooled features, and of the spatial ones."""


@dataclass(frozen=True, eq=False)
class PublishedMoments:
    """Means and covariances out of a reference file of ADM's, which are Inception's.

    Attributes:
        pool: Of the pooled features.
        spatial: Of the spatial features; None without.
        sha256: Digest of the file.
    """

    pool: FeatureStatistics
    spatial: FeatureStatistics | None
    sha256: str


@dataclass(frozen=True, eq=False)
class Judged:
    """One of the sets of an evaluation; it has images, features or statistics.

    Attributes:
        name: Its part: `generated`, `real`, `training` or `held_out`.
        source: What was named.
        index: Its images; None if only their features are there.
        features: Its features; None if they have yet to be computed.
        folder: Where the files of the features are, if they are gadc's own.
        moments: Published statistics.
    """

    name: str
    source: Path
    index: ImageIndex | None = None
    features: FeatureSet | None = None
    folder: Path | None = None
    moments: PublishedMoments | None = None


def open_judged(path: Path, name: str) -> Judged:
    """Find out what a path holds.

    Args:
        path: Images (whatever `gadc.images.index.open_index` reads, the folder of `gadc sample`, or
            an `.npz` file with `arr_0`), features (a folder of `gadc features`, or a file), or a
            reference file of ADM's.
        name: The part it plays.

    Raises:
        InputError: `missing_source`, or nothing usable there.
    """
    if not path.exists():
        raise InputError("missing_source", f"there is no {path}; check the path")
    if path.is_dir():
        if (path / SUMMARY_NAME).is_file() or shard_paths(path):
            return Judged(name, path, features=load_features(path), folder=path)
        samples = path / SAMPLES_FOLDER
        is_samples = (path / SAMPLES_RECORD).is_file() and samples.is_dir()
        return Judged(name, path, index=open_index(samples if is_samples else path, labels=False))
    if path.suffix.lower() in FEATURE_SUFFIXES:
        return Judged(name, path, features=load_features(path))
    if path.suffix.lower() == ".npz":
        return _open_npz(path, name)
    return Judged(name, path, index=open_index(path, labels=False))


def of_index(index: ImageIndex, name: str) -> Judged:
    """Return images as one of the sets of an evaluation."""
    return Judged(name, index.source, index=index)


def with_features(judged: Judged, features: FeatureSet, folder: Path) -> Judged:
    """Return the set with the features that were computed of its images."""
    return dataclasses.replace(judged, features=features, folder=folder)


def _open_npz(path: Path, name: str) -> Judged:
    arrays = stored_arrays(path)
    has_images = holds_images(arrays)
    if "mu" not in arrays and not has_images:
        return Judged(name, path, features=load_features(path))
    return Judged(
        name,
        path,
        index=index_arrays(path) if has_images else None,
        moments=_moments(path, arrays) if "mu" in arrays else None,
    )


def _moments(path: Path, arrays: dict[str, StoredArray]) -> PublishedMoments:
    found = []
    for mean, covariance in MOMENT_NAMES:
        present = [name for name in (mean, covariance) if name in arrays]
        if len(present) == 1:
            raise InputError(
                "bad_reference",
                f"{path} has {present[0]} but not both of {mean} and {covariance}; use the file "
                "as it was published",
            )
        found.append(_statistics(path, arrays, mean, covariance) if present else None)
    pool, spatial = found
    if pool is None:
        raise InputError("bad_reference", f"{path} has no mu and sigma; use another reference")
    return PublishedMoments(pool, spatial, file_sha256(path))


def _statistics(
    path: Path, arrays: dict[str, StoredArray], mean: str, covariance: str
) -> FeatureStatistics:
    def numbers(name: str) -> NDArray[np.float64]:
        if arrays[name].dtype.kind not in "fiu":
            raise InputError(
                "not_numbers", f"{name} of {path} must be real numbers, not {arrays[name].dtype}"
            )
        return np.asarray(read_array(path, arrays[name]), dtype=np.float64)

    centre, spread = numbers(mean), numbers(covariance)
    # The file doesn't say of how many images; it is taken for enough. The count itself cancels.
    return FeatureStatistics.from_moments(centre, spread, n_rows=max(2, centre.size + 1))


def described(judged: Judged) -> dict[str, Any]:
    """Return what a protocol says of a set: its source, size and digest of its contents."""
    found: dict[str, Any] = {"source": str(judged.source), "kind": "features", "n_images": None}
    if judged.index is not None:
        found["kind"] = judged.index.kind
    if judged.features is not None:
        found["n_images"] = judged.features.n_images
        sha256 = judged.features.sha256
        # Of the images where they are known: their features are a matter of the encoder.
        found["sha256"] = digest(sha256) if sha256 else judged.features.provenance.get("sha256")
    if judged.moments is not None:
        found["moments_sha256"] = judged.moments.sha256
    return found
