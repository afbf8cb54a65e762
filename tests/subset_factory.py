"""Subsets made by hand, for tests of what is done with a finished one."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from gadc.images.index import open_index
from gadc.images.source import ImageIndex
from gadc.subset import Subset


def subset_of(index: ImageIndex, *, n_per_class: int | None = None) -> Subset:
    """Select the first images of each class of an index, or all of them."""
    labels = np.zeros(len(index), np.int64) if index.labels is None else index.labels
    names = ["all"] if index.labels is None else index.class_names
    rows: list[int] = []
    ranks: list[int] = []
    for label in range(len(names)):
        of_class = np.flatnonzero(labels == label)[:n_per_class].tolist()
        rows += of_class
        ranks += range(len(of_class))
    return Subset(
        index=np.array(rows, np.int64),
        paths=[index.ids[row] for row in rows],
        sha256=[hashlib.sha256(index.read(row)).hexdigest() for row in rows],
        labels=labels[rows].astype(np.int32),
        class_name=[names[label] for label in labels[rows]],
        rank=np.array(ranks, np.int32),
        gain=np.linspace(-1.0, 0.5, len(rows)),
        weight=np.full(len(rows), 2.0),
        source=[str(index.source)] * len(rows),
        provenance={
            "n_scanned": len(index),
            "n_pool": len(index),
            "n_quarantined": 0,
            "n_excluded": 0,
        },
    )


def folder_subset(root: Path, *, n_per_class: int | None = None) -> tuple[Subset, ImageIndex]:
    index = open_index(root)
    return subset_of(index, n_per_class=n_per_class), index


def without_digests(subset: Subset) -> Subset:
    return dataclasses.replace(subset, sha256=[None] * subset.n_images)
