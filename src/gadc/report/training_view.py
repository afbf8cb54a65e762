"""Training runs as the templates and the scripts show them."""

import json
from collections.abc import Sequence
from typing import Any

from gadc.portable_names import printable
from gadc.report.training import TrainingRun, curves_of

MAX_POINTS, MIN_POINTS = 1_000, 20
"""Of a curve: more than a screen has pixels for; enough to see where it goes."""
MAX_NUMBERS = 100_000
"""In all curves of a report together: some 700 kB."""
N_CURVES = 5
"""Of a run, about."""
TITLES = {
    "loss": "loss",
    "velocity": "loss: velocity",
    "simple": "loss: squared error of the noise",
    "vlb": "loss: variational bound",
    "alignment": "loss: alignment",
    "images_per_second": "images per second",
    "flops_share": "share of the device's peak",
    "grad_norm": "norm of the gradient",
}
"""In the order of the report; others follow by name."""


class TrainingView:
    """Runs whose losses are drawn together.

    Args:
        number: Of the group in the report.
        runs: What was read, at least one.
        n_runs_in_all: In the whole report, to divide its bytes.
    """

    def __init__(self, number: int, runs: Sequence[TrainingRun], *, n_runs_in_all: int) -> None:
        self.number, self.runs = number, list(runs)
        n_points = MAX_NUMBERS // (n_runs_in_all * N_CURVES)
        n_points = max(MIN_POINTS, min(MAX_POINTS, n_points))
        self.curves = [curves_of(run.folder, n_points=n_points) for run in runs]

    def as_context(self) -> dict[str, Any]:
        """Return what the templates show."""
        settings = [_settings(run) for run in self.runs]
        names = list(dict.fromkeys(name for each in settings for name in each))
        differing = [name for name in names if len({each.get(name) for each in settings}) > 1]
        return {
            "number": self.number,
            "name": self.runs[0].name if len(self.runs) == 1 else f"{len(self.runs)} training runs",
            "has_curves": any(curves.steps for curves in self.curves),
            "differing": differing,
            "shared": [(name, settings[0][name]) for name in names if name not in differing],
            "runs": [
                {
                    "name": run.name,
                    "step": curves.steps[-1] if curves.steps else 0,
                    "steps": run.record.config.steps,
                    "loss": next(iter(curves.values.get("loss", [])[-1:]), None),
                    "images_per_second": curves.images_per_second,
                    "settings": [each.get(name, "–") for name in differing],
                }
                for run, curves, each in zip(self.runs, self.curves, settings, strict=True)
            ],
        }

    def as_data(self) -> dict[str, Any]:
        """Return what the scripts show: only numbers and printable text."""
        found = {name for curves in self.curves for name in curves.values}
        known = [name for name in TITLES if name in found]
        measures = [*known, *sorted(found.difference(TITLES))]
        groups = _numbered([run.group for run in self.runs])
        settings = _numbered([run.setting for run in self.runs])
        return {
            "number": self.number,
            "measures": [printable(TITLES.get(name, name)) for name in measures],
            "groups": [printable(group) for group in groups],
            "settings": [printable(setting) for setting in settings],
            "runs": [
                {
                    "name": printable(run.name),
                    "group": groups[run.group],
                    "setting": settings[run.setting],
                    "steps": curves.steps,
                    "values": [curves.values.get(name) for name in measures],
                }
                for run, curves in zip(self.runs, self.curves, strict=True)
            ],
        }


def _numbered(names: list[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def _settings(run: TrainingRun) -> dict[str, str]:
    """Return what a run was asked for and trained on, but for the steps, by name."""
    config = run.record.config.model_dump(mode="json", exclude={"steps"})
    found = {name: _text(value) for name, value in config.items() if value is not None}
    found |= {"images": f"{run.record.n_images:,}", "classes": f"{len(run.record.class_names):,}"}
    return found | {f"version of {name}": text for name, text in run.record.versions.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
