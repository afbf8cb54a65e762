"""The main job on real images that need no download: scikit-learn's handwritten digits."""

import dataclasses
import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gadc.errors import InputError, MissingExtraError
from gadc.evaluation.distribution import energy_distance
from gadc.evaluation.kernel import rbf_mmd_squared
from gadc.evaluation.manifold import coverage, recall
from gadc.evaluation.nearest_neighbour import nearest_neighbour_accuracy
from gadc.export import export_imagefolder
from gadc.features.probe import out_of_fold_confidence_loss
from gadc.features.store import FeatureSet, load_features
from gadc.forks import on_cores
from gadc.images.index import open_index
from gadc.job.config import CondenseConfig
from gadc.per_class.selection import ClassTask, class_objective
from gadc.report.build import build_report
from gadc.runs.inputs import ImageSettings
from gadc.runs.record import RECORD_NAME
from gadc.runs.selection import FEATURES_FOLDER, PATHS_NAME, Request, run_selection
from gadc.runtime import ProgressStyle, generator
from gadc.storage import exclusive, prepare_output, write_bytes, write_json
from gadc.subset import SUBSET_NAME, Subset

logger = logging.getLogger(__name__)

REPORT_NAME = "report.html"
GREY_LEVELS = 255
DIGIT_LEVELS = 16
"""The data set's own darkest level."""
SHEET_SCALE = 6
"""Pixels of the contact sheet per pixel of a digit."""
SHEET_GAP_PX = 4
N_PER_CLASS = 10
N_RANDOM = 5
SEED = 0
MAX_LOGISTIC_STEPS = 2_000
N_NEIGHBOURS = 5
"""k of coverage and of recall."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Measure:
    """One line of the comparison.

    Attributes:
        name: What it is called.
        better: `lower` or `higher`.
        gadc: Its value for the selected images.
        random: Its values for random choices of the same size, one per seed.
    """

    name: str
    better: str
    gadc: float
    random: list[float]


def run_demo(out: Path, *, workers: int = 2, show: ProgressStyle = "silent") -> dict[str, Any]:
    """Write the digits as image files, select ten of each, export them and compare with chance.

    Every step keeps what it has done, so a second run is quick.

    Args:
        out: Folder for everything.
        workers: Processes that select from classes at the same time.
        show: See `gadc.runtime.progress`.

    Returns:
        What was written and measured; also in `out/comparison.json`.
    """
    prepare_output(out)
    with exclusive(out):
        return _run_demo(out, workers, show)


def _run_demo(out: Path, workers: int, show: ProgressStyle) -> dict[str, Any]:
    data, run_folder, images_folder = out / "digits", out / "selected", out / "selected-images"
    write_digits(data)
    config = CondenseConfig(per_class=N_PER_CLASS)
    run_selection(
        Request(data, run_folder, config, ImageSettings(encoder="pixels"), workers=workers),
        show=show,
    )
    subset = Subset.load(run_folder)
    export_imagefolder(subset, open_index(data), images_folder, show=show)

    images, labels = digits()
    chosen = np.array([row_of(path) for path in subset.paths], dtype=np.int64)
    features = load_features(run_folder / FEATURES_FOLDER)
    with on_cores(1):  # as in the selection itself; many small steps are faster so
        objective = objective_measure(features, config, subset.index, seed=SEED)
    measures = [objective, *compare(images, labels, chosen, seed=SEED)]
    sheet = out / "selected.png"
    rows_by_class = [chosen[subset.labels == label] for label in np.unique(subset.labels)]
    write_contact_sheet(sheet, images, rows_by_class)
    written = {
        "digits": str(data),
        "subset": str(run_folder / SUBSET_NAME),
        "run": str(run_folder / RECORD_NAME),
        "paths": str(run_folder / PATHS_NAME),
        "images": str(images_folder),
        "sheet": str(sheet),
        "comparison": str(out / "comparison.json"),
        **write_report(run_folder, out / REPORT_NAME, show),
    }
    result = {
        "n_images": len(images),
        "n_selected": len(chosen),
        "n_random": N_RANDOM,
        "measures": [dataclasses.asdict(measure) for measure in measures],
        "written": written,
    }
    write_json(out / "comparison.json", result)
    return result


def write_report(run_folder: Path, report: Path, show: ProgressStyle) -> dict[str, str]:
    """Write the report about a selection, and return where; nothing if plotly is missing."""
    try:
        build_report([run_folder], report, show=show)
    except MissingExtraError as error:
        logger.warning("no report: %s", error.message)
        return {}
    return {"report": str(report)}


def digits() -> tuple[Images, Labels]:
    """Return the 1,797 scans, uint8 [n, 8, 8] with ink black on white, and their digits [n]."""
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    ink = levels.reshape(-1, 8, 8) * (GREY_LEVELS / DIGIT_LEVELS)
    return np.rint(GREY_LEVELS - ink).astype(np.uint8), labels.astype(np.int64)


def write_digits(folder: Path) -> int:
    """Write the digits as PNG files, one folder per digit; files that are there already stay.

    Returns:
        The number of files written.
    """
    images, labels = digits()
    n_written = 0
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        content = _png(image)
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
            n_written += 1
    return n_written


def compare(images: Images, labels: Labels, chosen: Rows, *, seed: int = 0) -> list[Measure]:
    """Compare a subset with random ones of the same size per class, on raw pixels.

    None of the measures is what gadc minimises. Distances and neighbourhoods are taken per class
    and averaged over the classes; the classifiers learn from the subset and are tested on all
    other images.

    Args:
        images: All images, uint8 [n, h, w].
        labels: Their classes [n].
        chosen: The subset's rows [m].
        seed: Of the random choices.
    """
    pixels = images.reshape(len(images), -1) / GREY_LEVELS
    random_choices = _random_choices(labels, chosen, seed)
    k = N_NEIGHBOURS
    of_coverage = _per_class(pixels, labels, partial(coverage, k=k))
    of_recall = _per_class(pixels, labels, partial(recall, k=k))
    measures: list[tuple[str, str, Callable[[Rows], float]]] = [
        ("energy distance", "lower", _per_class(pixels, labels, energy_distance)),
        ("MMD², RBF kernel", "lower", _per_class(pixels, labels, _empirical_mmd)),
        (f"coverage, k = {k}", "higher", of_coverage),
        (f"recall, k = {k}", "higher", of_recall),
        ("1-NN accuracy", "higher", lambda rows: _nearest_accuracy(pixels, labels, rows)),
        ("logistic accuracy", "higher", lambda rows: _logistic_accuracy(pixels, labels, rows)),
    ]
    return [
        Measure(name, better, measure(chosen), [measure(rows) for rows in random_choices])
        for name, better, measure in measures
    ]


def objective_measure(
    features: FeatureSet, config: CondenseConfig, chosen: Rows, *, seed: int = 0
) -> Measure:
    """Return what gadc minimises, in units of the median cost, as the mean over the classes.

    Args:
        features: All images.
        config: Of the selection.
        chosen: The subset's rows [m].
        seed: Of the random choices.
    """
    if features.labels is None:
        raise InputError("no_labels", "the comparison needs classes")
    labels = features.labels
    losses = out_of_fold_confidence_loss(features.features, labels)
    objectives = {}
    for label in np.unique(labels).tolist():
        rows = features.class_rows(label)
        objectives[label] = class_objective(
            ClassTask(
                name=features.class_names[label],
                features=features.features[rows],
                n_selected=0,
                settings=config.class_settings,
                confidence_loss=losses[rows].astype(np.float64),
            )
        )

    def averaged(selected: Rows) -> float:
        values = []
        for label, objective in objectives.items():
            of_class = selected[labels[selected] == label]
            places = np.searchsorted(features.class_rows(label), of_class)
            values.append(objective.value(places) / objective.scale)
        return float(np.mean(values))

    random = [averaged(rows) for rows in _random_choices(labels, chosen, seed)]
    return Measure("objective (what gadc minimises)", "lower", averaged(chosen), random)


def write_contact_sheet(path: Path, images: Images, rows_by_class: Sequence[Rows]) -> None:
    """Draw the selected images, a row per class in order of selection."""
    height, width = images.shape[1:]
    step_x, step_y = width * SHEET_SCALE + SHEET_GAP_PX, height * SHEET_SCALE + SHEET_GAP_PX
    n_columns = max(len(rows) for rows in rows_by_class)
    sheet = Image.new("L", (n_columns * step_x, len(rows_by_class) * step_y), GREY_LEVELS)
    for line, rows in enumerate(rows_by_class):
        for column, row in enumerate(rows.tolist()):
            digit = Image.fromarray(images[row])
            large = digit.resize(
                (width * SHEET_SCALE, height * SHEET_SCALE), Image.Resampling.NEAREST
            )
            sheet.paste(large, (column * step_x, line * step_y))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def row_of(path: str) -> int:
    """Return which digit a file that `write_digits` named is."""
    return int(os.path.splitext(os.path.basename(path))[0])


def _png(image: Images) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _random_choices(labels: Labels, chosen: Rows, seed: int) -> list[Rows]:
    return [_random_rows(labels, chosen, seed + trial) for trial in range(N_RANDOM)]


def _random_rows(labels: Labels, chosen: Rows, seed: int) -> Rows:
    """Draw as many rows of each class as `chosen` has."""
    draws = [
        generator(seed, "demo", label).choice(
            np.flatnonzero(labels == label), int((labels[chosen] == label).sum()), replace=False
        )
        for label in np.unique(labels).tolist()
    ]
    return np.concatenate(draws)


def _per_class(
    pixels: NDArray[np.float64], labels: Labels, measure: Callable[..., float]
) -> Callable[[Rows], float]:
    def averaged(rows: Rows) -> float:
        return float(
            np.mean(
                [
                    measure(
                        generated=pixels[rows[labels[rows] == label]], real=pixels[labels == label]
                    )
                    for label in np.unique(labels)
                ]
            )
        )

    return averaged


def _empirical_mmd(*, generated: NDArray[np.float64], real: NDArray[np.float64]) -> float:
    # The unbiased estimate of a spread-out choice is negative, which would read as an error here.
    return rbf_mmd_squared(generated=generated, real=real, estimator="empirical")


def _rest(n_images: int, rows: Rows) -> Rows:
    return np.setdiff1d(np.arange(n_images), rows)


def _nearest_accuracy(pixels: NDArray[np.float64], labels: Labels, rows: Rows) -> float:
    rest = _rest(len(pixels), rows)
    return nearest_neighbour_accuracy(
        selected=pixels[rows],
        selected_labels=labels[rows],
        real=pixels[rest],
        real_labels=labels[rest],
    )


def _logistic_accuracy(pixels: NDArray[np.float64], labels: Labels, rows: Rows) -> float:
    from sklearn.linear_model import LogisticRegression

    rest = _rest(len(pixels), rows)
    model = LogisticRegression(max_iter=MAX_LOGISTIC_STEPS).fit(pixels[rows], labels[rows])
    return float(model.score(pixels[rest], labels[rest]))
