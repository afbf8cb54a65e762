"""Folders that commands wrote, opened for a report."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gadc.errors import GadcError, InputError
from gadc.features.store import EXCLUDED_NAME, QUARANTINE_NAME, read_table
from gadc.images.source import ImageIndex
from gadc.report.comparison import COMPARISON_NAME, Comparison, read_comparison
from gadc.report.training import TrainingRun, read_experiment
from gadc.runs.record import RECORD_NAME, image_source, read_record
from gadc.runs.reopen import ReopenedPool, reopen_pool
from gadc.subset import SUBSET_NAME, Subset
from gadc.training.record import RECORD_NAME as TRAINING_NAME

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SelectionRun:
    """A finished selection and what is still there of its inputs.

    Attributes:
        folder: Where it lies.
        record: Its `run.json`.
        subset: The selected images.
        quarantine: Bad items by column: path, sha256, code, message.
        excluded: Files that were no candidates by column: path, reason.
        pool: What was selected from; None if that can't be opened any more.
        index: The images; None if they can't be found.
        remarks: What is missing from the report for such reasons.
    """

    folder: Path
    record: dict[str, Any]
    subset: Subset
    quarantine: dict[str, list[Any]]
    excluded: dict[str, list[Any]]
    pool: ReopenedPool | None
    index: ImageIndex | None
    remarks: list[str]


@dataclass(frozen=True)
class ComparisonRun:
    """A finished comparison.

    Attributes:
        folder: Where it lies.
        comparison: Its numbers.
        trainings: What was trained for it; nothing where only subsets are compared.
        n_trainings_gone: Trainings whose folder is not there any more.
    """

    folder: Path
    comparison: Comparison
    trainings: list[TrainingRun]
    n_trainings_gone: int


@dataclass(frozen=True)
class TrainingFolder:
    """A folder of `gadc train`, to be read together with others."""

    folder: Path


Opened = SelectionRun | ComparisonRun | TrainingFolder


def read_run(folder: Path, *, source: Path | None = None) -> Opened:
    """Open what a command wrote.

    Args:
        folder: The folder.
        source: Where the images are now, if not where they were selected from.

    Raises:
        InputError: `not_a_run`: no finished run of any command; or files of one that can't be
            used.
        RunError: `corrupt`: not the bytes that were written.
    """
    if (folder / COMPARISON_NAME).is_file():
        comparison = read_comparison(folder / COMPARISON_NAME)
        return ComparisonRun(folder, comparison, *read_experiment(folder))
    if (folder / TRAINING_NAME).is_file():
        return TrainingFolder(folder)
    record = read_record(folder)
    if record is None:
        unfinished = (folder / SUBSET_NAME).is_file()
        raise InputError(
            "not_a_run",
            f"{folder} has no {RECORD_NAME}: its selection has not finished; run it again"
            if unfinished
            else f"{folder} has neither {RECORD_NAME}, which `gadc select` writes, nor "
            f"{COMPARISON_NAME}, which `gadc compare` and `gadc experiment` write, nor "
            f"{TRAINING_NAME}, which `gadc train` writes",
        )
    return _read_selection(folder, record, source)


def _read_selection(folder: Path, record: dict[str, Any], given: Path | None) -> SelectionRun:
    remarks: list[str] = []
    where = image_source(folder, given)
    index, pool = None, None
    if where is None:
        remarks.append(
            "Images are not shown: the selection was made from features alone. Give their place "
            "with --source DATA if the features' ids are those of images."
        )
    else:
        try:
            index = where.index()
        except InputError as error:
            if given is not None:
                raise
            remarks.append(f"Images are not shown: {error.message}. Give --source DATA.")
    try:
        pool = reopen_pool(folder, record, where)
    except GadcError as error:
        remarks.append(f"The map, neighbours and unmatched images are left out: {error.message}.")
    for remark in remarks:
        logger.warning("%s: %s", folder, remark)
    return SelectionRun(
        folder=folder,
        record=record,
        subset=Subset.load(folder),
        quarantine=read_table(folder / QUARANTINE_NAME),
        excluded=read_table(folder / EXCLUDED_NAME),
        pool=pool,
        index=index,
        remarks=remarks,
    )
