"""The selections of all classes as one subset, with the proof of where it comes from."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gadc.job.prepare import CheckedSet, Job
from gadc.per_class.selection import ClassSelection
from gadc.storage import digest
from gadc.subset import Subset


def as_subset(job: Job, selections: Sequence[ClassSelection]) -> Subset:
    """Join the selections of all classes.

    Args:
        job: What was selected from.
        selections: One per class.
    """
    features, division = job.pool.features, job.division
    n_selected = [len(selection.order) for selection in selections]
    index = np.concatenate(
        [
            rows[np.array(selection.order, dtype=np.int64)]
            for rows, selection in zip(division.rows, selections, strict=True)
        ]
    )
    labels = np.repeat(np.arange(len(selections), dtype=np.int32), n_selected)
    # Every image is matched by the same mass 1/m, so it stands for n/m of its class.
    weights = [
        size / count if count else 0.0
        for size, count in zip(division.sizes, n_selected, strict=True)
    ]
    source = features.provenance.get("images", features.provenance.get("source", ""))
    return Subset(
        index=index,
        paths=[features.ids[row] for row in index],
        sha256=[None if features.sha256 is None else features.sha256[row] for row in index],
        labels=labels,
        class_name=[division.names[label] for label in labels],
        rank=np.concatenate([np.arange(count, dtype=np.int32) for count in n_selected]),
        gain=np.array([gain for selection in selections for gain in selection.gains]),
        weight=np.repeat(np.array(weights), n_selected),
        source=[str(source)] * len(index),
        provenance=_provenance(job, selections),
        class_seconds={
            name: selection.seconds
            for name, selection in zip(division.names, selections, strict=True)
        },
    )


def _provenance(job: Job, selections: Sequence[ClassSelection]) -> dict[str, Any]:
    """Return all that led to the subset; nothing in it depends on the run, such as times."""
    config = job.config.model_dump(mode="json")
    features = job.pool.features
    lists = {
        name: [features.ids[row] for row in job.pool.by_id[is_listed[job.pool.by_id]]]
        for name, is_listed in (
            ("keep", job.eligibility.is_kept),
            ("exclude", job.eligibility.is_excluded),
        )
    }
    return {
        "gadc": importlib.metadata.version("gadc"),
        "torch": str(torch.__version__),
        "config": config,
        "config_sha256": digest([config, lists]),
        "seed": job.config.seed,
        "device": torch.device(job.device).type,
        **lists,
        "pool": _described(job.pool),
        "target": None if job.target is None else _described(job.target),
        "n_scanned": features.n_scanned,
        "n_pool": features.n_images,
        "n_quarantined": len(features.quarantined),
        "n_excluded": len(features.excluded),
        "n_copies": job.eligibility.n_copies,
        "copies_known_by": "features" if features.sha256 is None else "sha256",
        "label_conflicts": [
            [
                {
                    "id": features.ids[row],
                    "class_name": job.division.names[job.division.labels[row]],
                }
                for row in rows
            ]
            for rows in job.eligibility.conflicts
        ],
        "division": job.division.kind,
        "confidence": job.confidence,
        "classes": [_class_record(job, label, found) for label, found in enumerate(selections)],
    }


def _described(checked: CheckedSet) -> dict[str, Any]:
    features = checked.features
    labels = None if features.labels is None else features.labels.tolist()
    return {
        "n_images": features.n_images,
        "dataset_sha256": digest([features.ids, features.sha256, labels, features.class_names]),
        "features_sha256": digest([row_digest.hex() for row_digest in checked.row_digests]),
        "features": features.provenance,
    }


def _class_record(job: Job, label: int, found: ClassSelection) -> dict[str, Any]:
    rows = job.division.rows[label]
    n_wanted, n_selected = int(job.allocation.wanted[label]), len(found.order)
    return {
        "label": label,
        "class_name": job.division.names[label],
        "n_images": len(rows),
        "n_selectable": len(rows) - int(job.eligibility.is_barred[rows].sum()),
        "n_wanted": n_wanted,
        "n_selected": n_selected,
        "n_short": max(0, n_wanted - n_selected),
        **_described_terms(found.terms),
        "scale": found.scale,
        "is_swap_optimal": found.is_swap_optimal,
        "has_converged": found.has_converged,
        "start": found.start,
        "start_values": found.start_values,
        "counts": found.counts,
        "nested": [
            {
                "n_selected": smaller["n_selected"],
                **_described_terms(smaller["terms"]),
                "is_swap_optimal": smaller["is_swap_optimal"],
            }
            for smaller in found.nested
        ],
    }


def _described_terms(terms: dict[str, float]) -> dict[str, Any]:
    return {
        "objective": terms.get("total"),
        "terms": terms,
        "transport_gap": terms["transport"] - terms["transport_lower_bound"] if terms else None,
    }
