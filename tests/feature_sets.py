"""Feature sets made by hand, and the cheapest selection from them."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from gadc.condense import CondenseConfig
from gadc.features.store import FeatureSet
from gadc.subset import Subset


def feature_set(
    *sizes: int, n_features: int = 6, seed: int = 0, has_sha256: bool = True
) -> FeatureSet:
    """Return classes of these sizes, each around a centre of its own; ids are in order."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = 3.0 * generator.normal(size=(len(sizes), n_features))
    features = centres[labels] + generator.normal(size=(len(labels), n_features))
    ids = [f"class {label}/{row:04d}.png" for row, label in enumerate(labels)]
    return FeatureSet(
        ids=ids,
        features=features.astype(np.float32),
        labels=labels,
        class_names=[f"class {label}" for label in range(len(sizes))],
        probabilities=None,
        sha256=[hashlib.sha256(name.encode()).hexdigest() for name in ids] if has_sha256 else None,
        paths=ids,
        excluded=[],
        quarantined=[],
        n_scanned=len(ids),
        provenance={"source": "made by hand"},
    )


def rows_of(features: FeatureSet, rows: np.ndarray) -> FeatureSet:
    """Return these rows, in this order."""
    return dataclasses.replace(
        features,
        ids=[features.ids[row] for row in rows],
        features=features.features[rows],
        labels=None if features.labels is None else features.labels[rows],
        probabilities=None if features.probabilities is None else features.probabilities[rows],
        sha256=None if features.sha256 is None else [features.sha256[row] for row in rows],
        paths=[features.paths[row] for row in rows],
        n_scanned=len(rows) + len(features.quarantined) + len(features.excluded),
    )


def with_features(features: FeatureSet, values: np.ndarray) -> FeatureSet:
    return dataclasses.replace(features, features=values)


def without_labels(features: FeatureSet) -> FeatureSet:
    return dataclasses.replace(features, labels=None, class_names=[])


def quick(**options: Any) -> CondenseConfig:
    """Return the cheapest complete search: tests of what surrounds it need no better one."""
    return CondenseConfig(**{"per_class": 3, "start": "greedy", "patience": 0, **options})


def records(subset: Subset) -> list[dict[str, Any]]:
    classes: list[dict[str, Any]] = subset.provenance["classes"]
    return classes
