"""Classes that will be searched in cells: a part of one, searched likewise to be timed."""

import dataclasses

import numpy as np

from gadc.forks import on_cores
from gadc.job.config import CondenseConfig
from gadc.per_class.selection import ClassTask, is_partitioned
from gadc.runs.cost_model import ClassSize, MeasuredClass
from gadc.runs.prepared_part import PreparedPart
from gadc.runs.selection_trial import timed_selection

TRIAL_IMAGES = 4000
"""Some ten cells at one image in a hundred."""
CELLS_BYTES = 1 << 30
CELLS_ROW_BYTES = 100
"""Memory of a search in cells, measured on 100,000 images; and what each image adds."""


class CellsPlan:
    """Which classes are searched in cells, and what that takes.

    Args:
        config: What is asked for.
        part: The data, or a part of them.
        has_target: Classes are to match something else.

    Attributes:
        in_cells: The labels of these classes, the largest first.
        whole: Those of all others.
        measured: What was searched to be timed.
    """

    def __init__(self, config: CondenseConfig, part: PreparedPart, *, has_target: bool) -> None:
        settings = config.class_settings
        self._part = part
        self._is_in_cells = [
            is_partitioned(settings, size.n_images, has_target=has_target) for size in part.sizes
        ]
        labels = part.tried_labels()
        self.in_cells = [label for label in labels if self._is_in_cells[label]]
        self.whole = [label for label in labels if not self._is_in_cells[label]]
        self.measured: list[MeasuredClass] = []

    def measure(self, n_cores: int) -> None:
        """Search a part of the largest class in cells, if there is one."""
        for label in self.in_cells[:1]:
            task, size = self._part.task(label), self._part.sizes[label]
            self.measured.append(try_cells(task, size, n_cores=n_cores))

    @property
    def seconds(self) -> float:
        """The time of all classes in cells, one after the other: in proportion to their images."""
        return sum(
            entry.seconds * size.n_images / entry.size.n_images
            for entry in self.measured
            for size in self.sizes(in_cells=True)
        )

    def sizes(self, *, in_cells: bool) -> list[ClassSize]:
        """Return the sizes of the classes in cells, or of all others."""
        return [
            size
            for size, is_in_cells in zip(self._part.sizes, self._is_in_cells, strict=True)
            if is_in_cells == in_cells and size.n_selected
        ]

    def needed_bytes(self, n_images: int) -> int:
        """Return what a search in cells takes besides."""
        return CELLS_BYTES + CELLS_ROW_BYTES * n_images if self.in_cells else 0

    @property
    def remarks(self) -> list[str]:
        """What is not known well."""
        if not self.in_cells:
            return []
        return [
            f"{len(self.in_cells)} classes are searched in cells: their time is that of "
            f"{self.measured[0].size.n_images:,} images, in proportion"
        ]


def try_cells(task: ClassTask, size: ClassSize, *, n_cores: int) -> MeasuredClass:
    """Search a part of a class in cells.

    As many images are selected of the part as of the class, in proportion: then the time grows
    with the number of images, and with nothing else.

    Args:
        task: The class, or some of its rows.
        size: Of the whole class.
        n_cores: As the run will have.
    """
    n = len(task.features)
    rows = np.arange(min(n, TRIAL_IMAGES)) * n // min(n, TRIAL_IMAGES)
    part = dataclasses.replace(
        task,
        features=task.features[rows],
        n_selected=max(1, round(size.n_selected * len(rows) / size.n_images)),
        target_weights=None if task.target_weights is None else task.target_weights[rows],
        confidence_loss=None if task.confidence_loss is None else task.confidence_loss[rows],
        keep=(),
        exclude=(),
        settings=dataclasses.replace(task.settings, partition="always"),
    )
    with on_cores(n_cores):
        seconds, _ = timed_selection(part)
    return MeasuredClass(ClassSize(len(rows), len(rows), part.n_selected), seconds, is_whole=False)
