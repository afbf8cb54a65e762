"""What selecting and judging take, from a small part of the data that is really worked on."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gadc.comparison.methods import Compared
from gadc.comparison.problem import Problem, problem_of
from gadc.experiment.cells import judge_real
from gadc.experiment.data import Images, labelled_part
from gadc.experiment.judging import prepare_judge
from gadc.experiment.protocol import HELD_OUT, POOL, JudgePart, Protocol
from gadc.experiment.selecting import units_of
from gadc.features.store import FeatureSet
from gadc.forks import on_cores
from gadc.runs.cost_model import ClassSize, MeasuredClass, fit_time_model, line_through
from gadc.runs.feature_trial import stand_in, try_features
from gadc.runs.planned_data import rows_of
from gadc.runs.prepared_part import spread
from gadc.runs.selection import Request, features_of
from gadc.runtime import generator

PART_IMAGES = 3_000
"""Of the part that methods select from; a smaller pool is taken whole."""
FEWEST_CLASSES = 2
"""The probe needs two."""
FEW_IMAGES, MORE_IMAGES = 64, 256
"""That are judged: the difference tells the time of an image apart from that of the start."""


@dataclass(frozen=True)
class SelectionCost:
    """What comes before the first training.

    Attributes:
        features_seconds: Of the pool.
        checks_seconds: Of the pool's features: copies, classes, the probe.
        unit_seconds: Of every selection, one after the other, in one process.
        n_classes: The fewest classes that a method was tried on.
    """

    features_seconds: float
    checks_seconds: float
    unit_seconds: list[float]
    n_classes: int


@dataclass(frozen=True)
class JudgingCost:
    """What judging takes: once, and by the images of a cell.

    Attributes:
        prepare_seconds: Training a classifier, features of real images.
        few_seconds: Judging `FEW_IMAGES`, or what there is.
        more_seconds: Judging `MORE_IMAGES`, or what there is.
        few: How many that were.
        more: How many that were.
    """

    prepare_seconds: float
    few_seconds: float
    more_seconds: float
    few: int
    more: int

    def seconds(self, n_images: int) -> float:
        """Return the time to judge so many images."""
        return line_through(self.few, self.few_seconds, self.more, self.more_seconds, n_images)


def measure_selection(
    protocol: Protocol,
    images: Images,
    methods: Sequence[Compared],
    *,
    device: str,
    seconds: float,
) -> SelectionCost:
    """Compute features of some images, and select from some classes with every method.

    Args:
        protocol: What to compare.
        images: All images.
        methods: Those of the protocol.
        device: Where features are computed.
        seconds: About how long; each method gets one class in any case.

    Raises:
        GadcError: An encoder or features that can't be used, and what a method complains of.
    """
    part, features_seconds = _part_of_pool(protocol, images, device, seconds)
    config = protocol.select_config().model_copy(update={"shortfall": "take-all"})
    began = time.monotonic()
    problem = problem_of(part, config, protocol.per_class)
    checks_seconds = (time.monotonic() - began) * len(images.pool) / part.n_images
    possible = [method for method in methods if not method.needs - problem.known]
    sizes = _class_sizes(images)
    share = seconds / (len(possible) * len(protocol.per_class))
    costs, n_classes = {}, len(problem.labels)
    with on_cores(1):
        for method in possible:
            for n in protocol.per_class:
                tried = _try_method(problem, method, n, share)
                n_classes = min(n_classes, len(tried))
                model = fit_time_model(tried)
                costs[method.name, n] = sum(
                    model.seconds(ClassSize(size, size, min(n, size))) for size in sizes
                )
    units = units_of(possible, protocol.per_class, protocol.seeds)
    return SelectionCost(
        features_seconds,
        checks_seconds,
        [costs[unit.method, unit.n_per_class] for unit in units],
        n_classes,
    )


def _part_of_pool(
    protocol: Protocol, images: Images, device: str, seconds: float
) -> tuple[FeatureSet, float]:
    """Return features of some classes, made up where there are none yet, and the time for all."""
    part = protocol.data
    settings = part.image_settings(device)
    if part.features is not None:
        request = Request(
            images.source, Path(), protocol.select_config(), settings, features=Path(part.features)
        )
        features, _ = features_of(request, "silent")
        return rows_of(features, _part_rows(features.labels, features.n_images)), 0.0
    trial = try_features(images.pool, settings.load_encoder(), settings, seconds=seconds)
    rows = _part_rows(images.pool.labels, len(images.pool))
    labels = None if images.pool.labels is None else images.pool.labels[rows]
    return stand_in(trial.features, labels, len(rows)), trial.seconds


def _part_rows(labels: NDArray[np.int64] | None, n_images: int) -> NDArray[np.int64]:
    """Return rows of classes spread over all, whole ones unless a few are already too many."""
    if n_images <= PART_IMAGES:
        return np.arange(n_images, dtype=np.int64)
    classes = np.zeros(n_images, np.int64) if labels is None else labels
    n_most = PART_IMAGES // FEWEST_CLASSES
    found: list[NDArray[np.int64]] = []
    for label in spread(np.unique(classes).tolist()):
        rows = np.flatnonzero(classes == label)
        rows = rows[:: -(-len(rows) // n_most)]
        if len(found) >= FEWEST_CLASSES and sum(map(len, found)) + len(rows) > PART_IMAGES:
            break
        found.append(rows)
    return np.sort(np.concatenate(found))


def _class_sizes(images: Images) -> list[int]:
    labels = images.pool.labels
    counts = np.array([len(images.pool)]) if labels is None else np.bincount(labels)
    return [int(count) for count in counts if count]


def _try_method(
    problem: Problem, method: Compared, n_per_class: int, seconds: float
) -> list[MeasuredClass]:
    """Select from classes, one at least, until the time is over."""
    job, tried = problem.jobs[n_per_class], []
    began = time.monotonic()
    for label in spread(problem.labels):
        case = problem.case(label)
        n_selected = job.task(label).n_selected
        case = dataclasses.replace(case, task=dataclasses.replace(case.task, n_selected=n_selected))
        started = time.monotonic()
        method.select(case, generator(0, "plan", method.name, label))
        size = len(case.task.features)
        tried.append(MeasuredClass(ClassSize(size, size, n_selected), time.monotonic() - started))
        if time.monotonic() - began >= seconds:
            break
    return tried


def measure_judging(
    part: JudgePart, images: Images, folder: Path, *, resolution_px: int, device: str
) -> JudgingCost:
    """Prepare the judge on a few images, and on more; then judge a few real ones, and more.

    A reference that the protocol names by its path is not read; the pool stands for it.

    Args:
        part: What judges.
        images: All images.
        folder: Existing, for everything.
        resolution_px: Of the samples.
        device: Where to compute.

    Raises:
        GadcError: An encoder that can't be used, and the like.
    """
    if part.real not in (HELD_OUT, POOL):
        part = part.model_copy(update={"real": POOL})
    n_pool = len(images.pool)
    few, more = min(FEW_IMAGES, n_pool // 2), min(MORE_IMAGES, n_pool)
    prepare_seconds, judge_seconds = [], []
    with on_cores(1):
        for n_images in (few, more):
            some = _some_images(images, n_images)
            out = folder / f"{n_images}"
            out.mkdir()
            began = time.monotonic()
            judge = prepare_judge(
                part, some, out, resolution_px=resolution_px, device=device, show="silent"
            )
            prepare_seconds.append(time.monotonic() - began)
        for n_images in (few, more):
            began = time.monotonic()
            judge_real(
                judge,
                some,
                out / f"scores-of-{n_images}",
                n_images=n_images,
                device=device,
                show="silent",
            )
            judge_seconds.append(time.monotonic() - began)
    return JudgingCost(
        line_through(few, prepare_seconds[0], more, prepare_seconds[1], n_pool),
        judge_seconds[0],
        judge_seconds[1],
        few,
        more,
    )


def _some_images(images: Images, n_images: int) -> Images:
    """Return so many images of the pool, and the same share of the held-out ones."""
    share = n_images / len(images.pool)
    held_out = images.held_out
    if held_out is not None:
        n_held_out = max(2, round(share * len(held_out)))
        held_out = labelled_part(held_out, _evenly(len(held_out), n_held_out))
    pool = labelled_part(images.pool, _evenly(len(images.pool), n_images))
    return dataclasses.replace(images, pool=pool, held_out=held_out)


def _evenly(n_images: int, n_wanted: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, n_images - 1, n_wanted).astype(np.int64))
