"""All that is decided before the search: classes, budget, copies, confidence."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.features.checks import as_float_matrix, as_probabilities
from gadc.features.probe import out_of_fold_confidence_loss
from gadc.features.rows import SelectedRows, release_rows
from gadc.features.store import FeatureSet
from gadc.forks import on_cores
from gadc.job.budget import Allocation, allocate_budget
from gadc.job.config import CondenseConfig
from gadc.job.division import Division, Eligibility, divide, find_eligible, shown
from gadc.job.duplicates import row_digests
from gadc.objective import confidence_losses
from gadc.per_class.selection import ClassTask, is_partitioned
from gadc.search.nested import check_nested

logger = logging.getLogger(__name__)

GIVEN = "given"
PROBE = "probe"


@dataclass(frozen=True, eq=False)
class CheckedSet:
    """A consistent data set.

    Attributes:
        features: The data set, its features float32.
        by_id: Rows in the order of their ids [n].
        row_digests: A digest of each row of features [n].
    """

    features: FeatureSet
    by_id: NDArray[np.int64]
    row_digests: list[bytes]


@dataclass(frozen=True, eq=False)
class Job:
    """A selection, ready to be made class by class.

    Attributes:
        config: What was asked for.
        pool: What to select from.
        target: What to match, if not the classes themselves.
        division: The classes.
        eligibility: Which images may be selected.
        allocation: How many each class gives.
        confidence: Where class probabilities come from, `given` or `probe`; else why the term is
            off.
        losses: -log p(own class | x) by the probe, float64 [n].
        device: Where to compute.
    """

    config: CondenseConfig
    pool: CheckedSet
    target: CheckedSet | None
    division: Division
    eligibility: Eligibility
    allocation: Allocation
    confidence: str
    losses: NDArray[np.float64] | None
    device: str

    def task(self, label: int) -> ClassTask:
        """Read what the selection from one class needs."""
        features, rows = self.pool.features, self.division.rows[label]
        name = self.division.names[label]
        n_selected = int(self.allocation.counts[label])
        if n_selected == 0:
            rows = rows[:0]
        settings = self.config.class_settings
        task = ClassTask(
            name=name,
            features=SelectedRows(features.features, rows)
            if is_partitioned(settings, len(rows), has_target=self.target is not None)
            else np.asarray(features.features[rows], dtype=np.float32),
            n_selected=n_selected,
            settings=settings,
            target=None if n_selected == 0 else self._target_features(name),
            confidence_loss=self._losses(label, rows),
            keep=tuple(np.flatnonzero(self.eligibility.is_kept[rows]).tolist()),
            exclude=tuple(np.flatnonzero(self.eligibility.is_barred[rows]).tolist()),
            device=self.device,
        )
        release_rows(features.features)
        return task

    def _target_features(self, name: str) -> NDArray[np.float32] | None:
        if self.target is None:
            return None
        rows = target_rows(self.target, name if self.division.kind == "labels" else None)
        return np.asarray(self.target.features.features[rows], dtype=np.float32)

    def _losses(self, label: int, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        if self.losses is not None:
            return self.losses[rows]
        probabilities = self.pool.features.probabilities
        if self.confidence != GIVEN or probabilities is None or not len(rows):
            return None
        name = f"probabilities of class {self.division.names[label]!r}"
        own = as_probabilities(np.asarray(probabilities[rows]), name)
        return confidence_losses(own, np.full(len(rows), label))


def prepare(
    features: FeatureSet,
    config: CondenseConfig,
    *,
    target: FeatureSet | None,
    keep: Sequence[str],
    exclude: Sequence[str],
    device: str,
) -> Job:
    """Decide all that the classes' selections depend on.

    Raises:
        InputError: Features, lists or numbers that can't be used.
    """
    if target is not None and config.clusters is not None:
        raise InputError(
            "clusters_with_target", "every cluster would match the same target; leave out clusters"
        )
    pool = check(features, "features")
    checked_target = None if target is None else check(target, "target")
    division = divide(pool.features, pool.by_id, n_clusters=config.clusters, seed=config.seed)
    eligibility = find_eligible(
        pool.features,
        division,
        pool.by_id,
        pool.features.sha256 or pool.row_digests,
        keep=keep,
        exclude=exclude,
        bar_copies=config.dedup == "first",
    )
    allocation = _allocate(config, division, eligibility)
    if checked_target is not None and division.kind == "labels":
        for name, n_selected in zip(division.names, allocation.counts, strict=True):
            if n_selected:
                target_rows(checked_target, name)
    confidence, losses = _confidence(pool.features, division, config)
    return Job(
        config,
        pool,
        checked_target,
        division,
        eligibility,
        allocation,
        confidence,
        losses,
        device,
    )


def check(features: FeatureSet, name: str) -> CheckedSet:
    """Check that a data set is consistent, and read its features once.

    Args:
        features: The data set.
        name: What errors call it.

    Raises:
        InputError: Lengths, labels, ids, counts or numbers that can't be.
    """
    n_images = features.n_images
    if not n_images:
        raise InputError("no_images", f"{name}: there are no images")
    if len(set(features.ids)) < n_images:
        raise InputError("duplicate_ids", f"{name}: ids are not unique; give each image its own")
    columns = {
        "features": features.features,
        "labels": features.labels,
        "probabilities": features.probabilities,
        "sha256": features.sha256,
    }
    for column_name, column in columns.items():
        if column is not None and len(column) != n_images:
            raise InputError(
                "length_mismatch", f"{name}: {n_images} ids but {len(column)} of {column_name}"
            )
    n_classes = len(features.class_names)
    if features.labels is not None:
        low, high = int(features.labels.min()), int(features.labels.max())
        if low < 0 or high >= n_classes:
            raise InputError(
                "label_out_of_range",
                f"{name}: labels run from {low} to {high}; there are {n_classes} classes",
            )
    if features.probabilities is not None and features.probabilities.shape[1:] != (n_classes,):
        raise InputError(
            "class_mismatch",
            f"{name}: probabilities have shape {features.probabilities.shape}; there are "
            f"{n_classes} classes",
        )
    n_found = n_images + len(features.quarantined) + len(features.excluded)
    if features.n_scanned != n_found:
        raise InputError(
            "not_reconciled",
            f"{name}: {features.n_scanned} scanned, but images, quarantined and excluded are "
            f"{n_found}",
        )
    values = features.features
    if isinstance(values, np.ndarray) and (
        values.dtype != np.float32 or values.ndim != 2 or 0 in values.shape
    ):
        # A memory map of float32 stays one; its numbers are checked below, block by block.
        features = dataclasses.replace(features, features=as_float_matrix(values, name))
    by_id = sorted(range(n_images), key=features.ids.__getitem__)
    return CheckedSet(
        features, np.array(by_id, dtype=np.int64), row_digests(features.features, name)
    )


def target_rows(target: CheckedSet, class_name: str | None) -> NDArray[np.int64]:
    """Return the rows that a class is to match, in the order of their ids.

    Args:
        target: What to match.
        class_name: None for all of the target.

    Raises:
        InputError: A labelled target without images of the class.
    """
    features = target.features
    if features.labels is None or class_name is None:
        return target.by_id
    if class_name in features.class_names:
        label = features.class_names.index(class_name)
        rows = target.by_id[features.labels[target.by_id] == label]
        if len(rows):
            return np.asarray(rows)
    raise InputError(
        "target_class_missing",
        f"the target has no images of class {class_name!r}; add some, leave the class out, or "
        "give the target no labels, so that every class matches all of it",
    )


def _allocate(config: CondenseConfig, division: Division, eligibility: Eligibility) -> Allocation:
    sizes, names = division.sizes, division.names
    n_images = int(sizes.sum())
    if config.per_class is not None and config.per_class > n_images:
        raise InputError(
            "budget_range", f"per_class={config.per_class} is more than all {n_images} images"
        )
    allocation = None
    if config.allocation is not None:
        numbers = {name: label for label, name in enumerate(names)}
        if unknown := sorted(set(config.allocation) - set(numbers)):
            raise InputError(
                "unknown_classes",
                f"the allocation names classes that are not there: {shown(unknown)}; there are "
                f"{shown(names)}",
            )
        allocation = {numbers[name]: count for name, count in config.allocation.items()}
    n_selectable = np.array([int((~eligibility.is_barred[rows]).sum()) for rows in division.rows])
    allocated = allocate_budget(
        sizes,
        per_class=config.per_class,
        fraction=config.fraction,
        budget=config.budget,
        allocate=config.allocation_rule,
        allocation=allocation,
        shortfall=config.shortfall,
        n_selectable=n_selectable,
        class_names=names,
    )
    check_nested(config.nested, int(allocated.wanted.max()))
    for label, rows in enumerate(division.rows):
        n_kept = int(eligibility.is_kept[rows].sum())
        if n_kept > allocated.counts[label]:
            raise InputError(
                "keep_over_budget",
                f"{n_kept} images of class {names[label]!r} are kept, but it gives only "
                f"{allocated.counts[label]}; raise the budget or keep fewer",
            )
        if allocated.counts[label] < allocated.wanted[label]:
            logger.warning(
                "class %r gives %d of the %d images asked for: %d may be selected",
                names[label],
                allocated.counts[label],
                allocated.wanted[label],
                n_selectable[label],
            )
    return allocated


def _confidence(
    features: FeatureSet, division: Division, config: CondenseConfig
) -> tuple[str, NDArray[np.float64] | None]:
    """Return where class probabilities come from, or why not, and the probe's losses."""
    if config.confidence_weight == 0.0:
        return "off: its weight is 0", None
    if division.kind != "labels":
        reason = "off: the images have no labels"
    elif features.probabilities is not None:
        return GIVEN, None
    elif not config.probe:
        reason = "off: there are no class probabilities, and no probe was wanted"
    elif np.count_nonzero(division.sizes) < 2:
        reason = "off: there is only one class"
    else:
        with on_cores(1):
            losses = out_of_fold_confidence_loss(
                features.features, division.labels, n_classes=len(division.names)
            )
        release_rows(features.features)
        return PROBE, losses.astype(np.float64)
    if config.confidence_weight is not None:
        raise InputError(
            "confidence_missing",
            f"confidence_weight={config.confidence_weight}, but the term is {reason}; leave the "
            "weight out",
        )
    logger.info("the confidence term is %s", reason)
    return reason, None
