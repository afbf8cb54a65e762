"""What a selection starts from, as far as it is known before anything has run."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gadc.features.store import FeatureSet
from gadc.runs.feature_trial import FeatureTrial, stand_in, try_features
from gadc.runs.inputs import ImageSettings, is_features, load_any
from gadc.runs.selection import Request, features_of


@dataclass(frozen=True, eq=False)
class PlannedData:
    """A data set whose features exist, or will be computed.

    Attributes:
        n_images: All images.
        n_features: Length of a feature vector.
        labels: Int64 [n]; None without.
        class_names: The classes.
        take: Gives the features of some rows, or of all (None); made up if they don't exist yet.
        trial: What computing features of a sample showed; None if they exist.
        load_seconds: Until the features, or the encoder and the list of images, were there.
    """

    n_images: int
    n_features: int
    labels: NDArray[np.int64] | None
    class_names: list[str]
    take: Callable[[NDArray[np.int64] | None], FeatureSet]
    trial: FeatureTrial | None
    load_seconds: float


def planned_pool(request: Request, *, seconds: float) -> PlannedData:
    """Open what is selected from; images are sampled for about so many seconds."""
    if is_features(request.data) or request.features is not None:
        began = time.monotonic()
        features, _ = features_of(request, "silent")
        return _given(features, time.monotonic() - began)
    return _sampled(request.data, request.images, seconds)


def planned_target(request: Request, *, seconds: float) -> PlannedData | None:
    """Open what is to be matched likewise; None if that is the pool's own classes."""
    if request.target is None:
        return None
    if is_features(request.target):
        began = time.monotonic()
        return _given(load_any(request.target), time.monotonic() - began)
    return _sampled(request.target, request.images, seconds)


def _given(features: FeatureSet, load_seconds: float) -> PlannedData:
    return PlannedData(
        features.n_images,
        features.n_features,
        features.labels,
        features.class_names,
        lambda rows: features if rows is None else rows_of(features, rows),
        None,
        load_seconds,
    )


def _sampled(data: Path, settings: ImageSettings, seconds: float) -> PlannedData:
    began = time.monotonic()
    encoder = settings.load_encoder()
    index = settings.index(data)
    load_seconds = time.monotonic() - began
    trial = try_features(index, encoder, settings, seconds=seconds)

    def take(rows: NDArray[np.int64] | None) -> FeatureSet:
        labels = index.labels if rows is None or index.labels is None else index.labels[rows]
        return stand_in(trial.features, labels, len(index) if rows is None else len(rows))

    return PlannedData(
        len(index),
        trial.features.n_features,
        index.labels,
        index.class_names,
        take,
        trial,
        load_seconds,
    )


def rows_of(features: FeatureSet, rows: NDArray[np.int64]) -> FeatureSet:
    """Return some rows of a set, in memory, as a set of their own."""
    probabilities = features.probabilities
    return dataclasses.replace(
        features,
        ids=[features.ids[row] for row in rows.tolist()],
        paths=[features.paths[row] for row in rows.tolist()],
        features=np.asarray(features.features[rows]),
        labels=None if features.labels is None else features.labels[rows],
        probabilities=None if probabilities is None else np.asarray(probabilities[rows]),
        sha256=None if features.sha256 is None else [features.sha256[row] for row in rows.tolist()],
        excluded=[],
        quarantined=[],
        n_scanned=len(rows),
    )
