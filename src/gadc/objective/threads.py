"""Blocks of work on several cores: each block in one thread, several blocks at once.

A search takes many small steps. Threads that share one such step mostly wait for each other;
threads that each have steps of their own do not.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from gadc.forks import Item, Lanes, Result, can_fork, in_forks, in_step, is_fork, n_cores

GPU_BLOCK_ENTRIES = 1 << 26
# A megabyte in float32: a few such arrays stay in a core's cache.
CACHED_ENTRIES = 1 << 18
# To hand fewer blocks than this to other threads, which Python lets in one at a time, takes longer
# than to work on them.
LEAST_BLOCKS = 16


def block_rows(cost: torch.Tensor, cpu_entries: int = CACHED_ENTRIES) -> int:
    """Return how many rows of `cost` [n_images, n] are worked on together.

    Args:
        cost: Says on which device.
        cpu_entries: About so many costs on a CPU, by default few enough for a core's cache; on
            another device as many as fill it.
    """
    entries = cpu_entries if cost.device.type == "cpu" else GPU_BLOCK_ENTRIES
    return max(1, entries // cost.shape[1])


class Threads:
    """As many threads as a search may use now, on a CPU; one for another device, with its own.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device, n_threads: int | None = None) -> None:
        if n_threads is None:
            n_threads = n_cores() if device.type == "cpu" else 1
        self.n_threads = n_threads
        self._pool = ThreadPoolExecutor(n_threads) if n_threads > 1 else None

    @contextlib.contextmanager
    def one_each(self) -> Iterator[None]:
        """Let torch use one thread in each of ours, and keep no books for gradients.

        Of small steps that bookkeeping takes a tenth of the time.
        """
        n_threads = torch.get_num_threads()
        with torch.inference_mode():
            if self._pool is None or n_threads == 1:
                yield
                return
            torch.set_num_threads(1)
            try:
                yield
            finally:
                torch.set_num_threads(n_threads)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return `function` of each item, in order; what an item gives depends on it alone."""
        if self._pool is None or is_fork():
            return [function(item) for item in items]
        # The mode of `one_each` is this thread's alone.
        return list(self._pool.map(torch.inference_mode()(function), items))

    def map_apart(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return what `map` does, by processes where they can be forked: of many small steps.

        What the function changes may be lost.
        """
        if can_fork():
            return in_forks(function, items, self.n_threads)
        return self.map(function, items)

    def in_step(self, lanes: Lanes[Result]) -> Generator[list[Result], None, None]:
        """Yield what `gadc.forks.in_step` does, by threads where no process can be forked."""
        if can_fork():
            yield from in_step(lanes, self.n_threads)
            return
        running = [iter(lane()) for lane in lanes]
        while True:
            found = self.map(lambda lane: next(lane, None), running)
            if all(result is None for result in found):
                return
            yield [result for result in found if result is not None]

    def map_blocks(
        self, function: Callable[[Item], Result], blocks: Sequence[Item]
    ) -> list[Result]:
        """Return what `map` does, of blocks that fit a core's cache: a few are done right here."""
        if len(blocks) < LEAST_BLOCKS:
            return [function(block) for block in blocks]
        return self.map(function, blocks)
