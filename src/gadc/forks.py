"""Independent pieces of work in forks of this process.

Python's lock lets one thread at a time take small steps; processes don't share it. A fork knows all
that this process knew, so only what it finds travels.
"""

import contextlib
import contextvars
import ctypes
import functools
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Ways to results that depend on no other lane, none of them None.
Lanes = Sequence[Callable[[], Iterable[Result]]]

_PR_SET_PDEATHSIG = 1

_is_fork = False
_n_granted = contextvars.ContextVar[int | None]("_n_granted", default=None)
# What forks send is read here; a fork closes what it inherits of them.
_receivers: set[Connection] = set()


def is_fork() -> bool:
    """Tell whether this process is one of the forks made here: it has one thread."""
    return _is_fork


def can_fork() -> bool:
    """Tell whether this process may be forked: elsewhere than on Linux, libraries forbid it."""
    is_free = not (_is_fork or multiprocessing.current_process().daemon)
    return is_free and sys.platform == "linux"


def n_cores() -> int:
    """Return on how many cores a search may be: as many as granted, else as torch has threads."""
    granted = _n_granted.get()
    return torch.get_num_threads() if granted is None else granted


def grant_cores(n: int) -> None:
    """Let searches be on `n` cores, while torch itself uses one thread in each.

    With more threads torch splits sums differently, which changes last digits.
    """
    _n_granted.set(n)
    torch.set_num_threads(1)


@contextlib.contextmanager
def on_cores(n: int) -> Iterator[None]:
    """Grant cores for a while."""
    before, n_threads = _n_granted.get(), torch.get_num_threads()
    grant_cores(n)
    try:
        yield
    finally:
        _n_granted.set(before)
        if n_threads > 1:  # else perhaps another thread has made it one for a while
            torch.set_num_threads(n_threads)


# A warning's message, category, file and line; and one result or, at the end, none.
_Told = tuple[str, type[Warning], str, int]
_Message = tuple[list[Result], list[_Told]]


class Fork(Iterator[Result], Generic[Result]):
    """What a fork of this process finds, one result after the other, while this one goes on.

    Where there can be no fork, or it dies, this process does the work when results are asked for;
    so errors show here. To be closed.

    Args:
        work: Gives the results. What else it changes is lost.
        here: Do the work in this process in any case.
    """

    def __init__(self, work: Callable[[], Iterable[Result]], *, here: bool = False) -> None:
        self._work = work
        self._n_received = 0
        self._is_over = False
        self._here: Iterator[Result] | None = None
        self._process: BaseProcess | None = None
        self._receiver: Connection | None = None
        if can_fork() and not here:
            # No memory, or too many processes or open files.
            with contextlib.suppress(OSError):
                self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        _receivers.add(self._receiver)
        process = context.Process(
            target=_send_all, args=(self._work, sender, os.getpid()), daemon=True
        )
        # Ctrl-C reaches the whole group; the parent decides what it means.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():
                # Locks of other threads may stay locked in a fork, which has no use for them.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            self._process = process
        finally:
            sender.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __next__(self) -> Result:
        """Wait for the next result."""
        if self._here is None and (message := self._received()) is not None:
            results, told = message
            for warning in told:
                _warn_here(*warning)
            if results:
                self._n_received += 1
                return results[0]
            self._here = iter(())
        if self._here is None:
            self._here = itertools.islice(self._work(), self._n_received, None)
        return next(self._here)

    def _received(self) -> _Message[Result] | None:
        if self._receiver is None:
            return None
        try:
            message: _Message[Result] = pickle.loads(self._receiver.recv_bytes())
        except (EOFError, OSError):
            return None
        self._is_over = not message[0]
        return message

    def close(self) -> None:
        """End the fork, if it is still at work."""
        if self._process is not None and not self._has_told_all():
            self._process.kill()
            self._process.join()
        # One that has told all ends by itself, which takes a while; the next fork made reaps it.
        self._process = None
        if self._receiver is not None:
            _receivers.discard(self._receiver)
            self._receiver.close()

    def _has_told_all(self) -> bool:
        """Tell whether the fork's last message is here; what it found is dropped."""
        while not self._is_over and self._receiver is not None and self._receiver.poll():
            if self._received() is None:
                return False
        return self._is_over


def _send_all(work: Callable[[], Iterable[object]], sender: Connection, parent: int) -> None:
    """Be a fork: send all results, then end. Where an error is met, the end is not sent."""
    global _is_fork
    _is_fork = True
    try:
        _end_with(parent)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            results = iter(work())
            while found := list(itertools.islice(results, 1)):
                _send(sender, found, seen)
            _send(sender, [], seen)
    finally:
        os._exit(0)  # what this process does at its end is not the fork's to do


def _end_with(parent: int) -> None:
    """End when the parent is gone, killed perhaps: at once, or at the latest at the next result."""
    for receiver in _receivers:
        receiver.close()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _warn_here(message: str, category: type[Warning], filename: str, line: int) -> None:
    """Give a fork's warning as if it came up in this process."""
    modules = [each for each in sys.modules.values() if getattr(each, "__file__", "") == filename]
    module = modules[0] if modules else sys.modules[__name__]
    registry = module.__dict__.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, category, filename, line, module.__name__, registry)


def _send(sender: Connection, found: list[object], seen: list[warnings.WarningMessage]) -> None:
    told = [(str(each.message), each.category, each.filename, each.lineno) for each in seen]
    seen.clear()
    sender.send_bytes(pickle.dumps((found, told)))


def in_step(lanes: Lanes[Result], n_processes: int) -> Generator[list[Result], None, None]:
    """Yield what all lanes give, one result of each at a time, until all have ended.

    To be closed.

    Args:
        lanes: See `Lanes`, and `Fork`.
        n_processes: At the same time, this one among them.
    """
    n = max(1, min(n_processes, len(lanes)))

    def share(number: int) -> Iterable[tuple[Result | None, ...]]:
        return itertools.zip_longest(*(lane() for lane in lanes[number::n]))

    with contextlib.ExitStack() as stack:
        forks = [
            stack.enter_context(contextlib.closing(Fork(functools.partial(share, number))))
            for number in range(1, n)
        ]
        for shares in itertools.zip_longest(share(0), *forks, fillvalue=()):
            by_lane = itertools.chain.from_iterable(itertools.zip_longest(*shares))
            yield [result for result in by_lane if result is not None]


def in_forks(
    function: Callable[[Item], Result], items: Iterable[Item], n_processes: int
) -> list[Result]:
    """Return `function` of each item, in order, in this process and forks of it.

    Args:
        function: Of an item; what it gives depends on no other item. See `Fork`.
        items: What is worked on.
        n_processes: At the same time, this one among them.
    """

    def alone(item: Item) -> Iterator[tuple[Result]]:
        yield (function(item),)

    lanes = [functools.partial(alone, item) for item in items]
    return [result for results in in_step(lanes, n_processes) for (result,) in results]
