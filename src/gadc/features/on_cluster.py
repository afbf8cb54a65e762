"""Rows computed on a cluster, a run of neighbouring images per task."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gadc.cluster.tasks import Cluster, Task, fetch, machine_name
from gadc.errors import InputError, RunError
from gadc.features.computing import (
    Reading,
    RowBlock,
    RowComputer,
    RowStore,
    Seen,
    fingerprint_of,
)
from gadc.features.encoders import Encoder, load_encoder
from gadc.features.forward import CPU_BLOCK_IMAGES
from gadc.images.faults import ImageError
from gadc.images.source import ImageIndex
from gadc.storage import canonical_json

MOST_TASK_IMAGES = 1024
"""So much is computed again when a worker dies; all that is under way when the driver does."""
TASKS_PER_WORKER = 4
"""So that the last ones to work are not alone for long."""
NOT_THERE = frozenset(["changed", "io_error"])


class PartStore(RowStore, Protocol):
    """A store that writes rows to files."""

    def flush(self) -> None:
        """Write what there is."""


@dataclass(frozen=True, eq=False)
class SharedWork:
    """What all tasks have in common.

    Attributes:
        index: The images.
        encoder: Its name; see `load_encoder`.
        weights: See there.
        reading: How images are read.
        described: All that rows depend on besides images, as the driver's machine has it.
        known: Images whose rows are not needed.
    """

    index: ImageIndex
    encoder: str
    weights: Path | None
    reading: Reading
    described: dict[str, Any]
    known: frozenset[bytes]

    @property
    def device(self) -> str:
        """Where the encoder computes."""
        return str(self.described["device"])


@dataclass(frozen=True, eq=False)
class _Neighbours:
    """The images of a task, and a reference to the `SharedWork`."""

    shared: Any
    positions: range


@dataclass(frozen=True, eq=False)
class _Computed:
    """What a task returns: the fate of its images, and the rows that were not known."""

    machine: str
    seen: list[Seen]
    rows: RowBlock | None


class _Collected:
    """The store of a task: rows that are known elsewhere, and those that were computed here."""

    def __init__(self, known: frozenset[bytes]) -> None:
        self._known = known
        self._digests: set[bytes] = set()
        self.blocks: list[RowBlock] = []

    def __contains__(self, digest: object) -> bool:
        return digest in self._known or digest in self._digests

    def add(self, block: RowBlock) -> None:
        """Take in rows."""
        self._digests.update(block.digests)
        self.blocks.append(block)


def compute_on(
    cluster: Cluster, work: SharedWork, store: PartStore, see: Callable[[Seen], None]
) -> None:
    """Read all images, and compute the rows that the store lacks, with the numbers of one machine.

    Args:
        cluster: Where.
        work: What all tasks have in common.
        store: Gets the rows of each task, as a part of their own.
        see: Called for every image, in any order.

    Raises:
        InputError: `machines_differ`: another encoder, or other versions, on one of the machines.
        RunError: `not_shared`: an image can be read here but not there.
        GadcError: What else `RowComputer.compute`, loading the encoder or `Cluster.run` raises.
    """
    index = work.index
    # Labels are not needed to compute rows, and a million travels slowly.
    light = dataclasses.replace(index, labels=None, class_names=[], excluded=[], quarantined=[])
    shared = cluster.share(dataclasses.replace(work, index=light))

    def tasks() -> Iterator[Task[None, _Neighbours]]:
        size = _task_images(len(index), cluster.n_at_once(work.device))
        for start in range(0, len(index), size):
            positions = range(start, min(start + size, len(index)))
            name = f"images {index.ids[start]!r} to {index.ids[positions[-1]]!r}"
            yield Task(None, name, _Neighbours(shared, positions))

    def keep(_key: None, computed: _Computed) -> None:
        # Copies of an image may lie in several tasks.
        fresh = None if computed.rows is None else computed.rows.without(store)
        if fresh is not None and fresh.digests:
            store.add(fresh)
            store.flush()
        for seen in computed.seen:
            if seen.error is not None and seen.error.code in NOT_THERE:
                seen = _read_here(index, seen, computed.machine)
            see(seen)

    cluster.run(_compute, tasks(), keep, device=work.device)


def _task_images(n_images: int, n_at_once: int) -> int:
    """Return how many images a task has: whole blocks, and enough tasks for all workers."""
    even = -(-n_images // (TASKS_PER_WORKER * n_at_once))
    return min(MOST_TASK_IMAGES, -(-even // CPU_BLOCK_IMAGES) * CPU_BLOCK_IMAGES)


def _read_here(index: ImageIndex, seen: Seen, machine: str) -> Seen:
    """Return the fate of an image that can't be read here either.

    Raises:
        RunError: It can: it is not the image that is bad.
    """
    try:
        index.read(seen.position)
    except ImageError as error:
        return dataclasses.replace(seen, error=error)
    raise RunError(
        "not_shared",
        f"{index.path(seen.position)} can be read here but not on machine {machine}: "
        f"{seen.error}; every machine must see the images under the same path (what is computed "
        "is kept)",
    )


def _compute(given: _Neighbours) -> _Computed:
    """Do one task."""
    work, encoder = _opened(given.shared)
    store = _Collected(work.known)
    seen: list[Seen] = []
    computer = RowComputer(work.index, encoder, work.reading, store)
    computer.compute(given.positions, seen.append)
    rows = RowBlock.joined(store.blocks) if store.blocks else None
    return _Computed(machine_name(), seen, rows)


@functools.lru_cache(maxsize=1)
def _opened(shared: Any) -> tuple[SharedWork, Encoder]:
    """Load, once in each worker, what its tasks share.

    Raises:
        InputError: The encoder can't be loaded, or is not the one of the driver.
    """
    work: SharedWork = fetch(shared)
    encoder = load_encoder(work.encoder, weights=work.weights, device=work.device)
    _, described = fingerprint_of(encoder, work.reading.policy)
    differing = [name for name in described if described[name] != work.described[name]]
    if differing:
        raise InputError(
            "machines_differ",
            f"machine {machine_name()} has another {differing[0]} than this one: "
            f"{canonical_json(described[differing[0]])}, here "
            f"{canonical_json(work.described[differing[0]])}",
        )
    return work, encoder
