"""A finished selection, opened again: the features it selected from, by what `run.json` says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gadc.errors import InputError
from gadc.features.store import SUMMARY_NAME, FeatureSet
from gadc.images.index import open_index
from gadc.job.division import Division, divide
from gadc.runs.inputs import is_features, join_features, load_any
from gadc.runs.record import ImageSource
from gadc.runs.selection import FEATURES_FOLDER
from gadc.storage import digest

MAX_CLUSTERED_IMAGES = 100_000
"""Clusters are not stored, but found again; of more images that takes minutes."""


@dataclass(frozen=True, eq=False)
class ReopenedPool:
    """The images that were selected from.

    Attributes:
        features: Verified to be those of the run.
        division: Their classes, as the run divided them.
    """

    features: FeatureSet
    division: Division


def reopen_pool(folder: Path, record: dict[str, Any], source: ImageSource | None) -> ReopenedPool:
    """Open the features of a finished selection.

    Args:
        folder: What `gadc select` wrote.
        record: Its `run.json`.
        source: Where the images are now; None for features without images.

    Raises:
        InputError: They are not there any more, or not the ones that were selected from.
        RunError: `corrupt`: not the bytes that were written.
    """
    features = _features(folder, record, source)
    labels = None if features.labels is None else features.labels.tolist()
    found = digest([features.ids, features.sha256, labels, features.class_names])
    if found != record["pool"]["dataset_sha256"]:
        raise InputError(
            "pool_changed",
            f"the features now found are of other images, or other classes, than {folder} was "
            "selected from; restore them, or select again",
        )
    n_clusters = record["config"]["clusters"]
    if n_clusters is not None and features.n_images > MAX_CLUSTERED_IMAGES:
        raise InputError(
            "pool_too_large",
            f"{features.n_images} images are too many to find their clusters again; the limit is "
            f"{MAX_CLUSTERED_IMAGES}",
        )
    by_id = np.array(sorted(range(features.n_images), key=features.ids.__getitem__), np.int64)
    seed = record["config"]["seed"]
    return ReopenedPool(features, divide(features, by_id, n_clusters=n_clusters, seed=seed))


def _features(folder: Path, record: dict[str, Any], source: ImageSource | None) -> FeatureSet:
    inputs = record.get("inputs", {})
    labels_file = None if inputs.get("labels_file") is None else Path(inputs["labels_file"])
    data = Path(record["data"])
    if inputs.get("features") is not None:
        if source is None:
            raise InputError(
                "source_unknown", f"{folder} doesn't say where its images are; give --source DATA"
            )
        path = Path(inputs["features"])
        index = open_index(
            source.path,
            labels=inputs["labels"],
            image_column=source.image_column,
            label_column=inputs["label_column"],
            follow_outside=source.follow_outside,
            on_error="quarantine",
        )
        return join_features(index, load_any(path, labels_file=labels_file), source=path)
    if (folder / FEATURES_FOLDER / SUMMARY_NAME).is_file() and not is_features(data):
        return load_any(folder / FEATURES_FOLDER)
    return load_any(data, labels_file=labels_file)
