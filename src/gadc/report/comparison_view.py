"""One comparison as the templates and the scripts show it."""

import json
from typing import Any

import numpy as np

from gadc.portable_names import printable
from gadc.report.comparison import Comparison
from gadc.report.reading import ComparisonRun
from gadc.report.training import base_name
from gadc.report.training_view import TrainingView

KINDS = {
    "gadc": "gadc",
    "ablation": "gadc with a part left out",
    "peer": "other methods",
    "random": "random",
}


def comparison_context(
    run: ComparisonRun, number: int, trainings: TrainingView | None
) -> dict[str, Any]:
    """Return what the templates show."""
    found = run.comparison
    kinds = {method["kind"] for method in found.methods}
    return {
        "number": number,
        "name": base_name(run.folder),
        "n_methods": found.n_methods,
        "n_measures": len(found.measures),
        "by_class": found.by_class,
        "kinds": [(kind, KINDS[kind]) for kind in KINDS if kind in kinds],
        "metadata_text": json.dumps(found.metadata, indent=2, sort_keys=True),
        "training": None if trainings is None else trainings.as_context(),
        "n_trainings_gone": run.n_trainings_gone,
    }


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Return what the scripts show: only numbers and printable text."""

    def text(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                name: printable(value) if isinstance(value, str) else value
                for name, value in entry.items()
            }
            for entry in entries
        ]

    return {
        "methods": text(comparison.methods),
        "measures": text(comparison.measures),
        "settings": text(comparison.settings),
        "cells": [
            [*key, _finite(cell.mean), _finite(cell.sd), cell.n_seeds, printable(cell.note)]
            for key, cell in comparison.cells.items()
        ],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
