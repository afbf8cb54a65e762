"""Many independent tasks on Ray: a bounded number at once, those whose worker dies again."""

import collections
import importlib.metadata
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from gadc.errors import GadcError, InputError, RunError

logger = logging.getLogger(__name__)

MOST_DEATHS = 3
"""A task whose workers died so often is given up: most likely it is what kills them."""
SAME_VERSIONS = ("gadc", "numpy", "pillow", "scipy", "torch")
"""Libraries whose numbers end up in results."""

NOT_INSTALLED = re.compile(r"No module named '[^']+'|Can't get attribute '[^']+' on <[^>]*>")
MOST_SHOWN = 10
MOST_CHARACTERS = 300
"""Of a message of Ray's, which may hold tracebacks of pages."""

Key = TypeVar("Key")
Given = TypeVar("Given")
Result = TypeVar("Result")


@dataclass
class Task(Generic[Key, Given]):
    """One piece of work.

    Attributes:
        key: For the caller.
        name: For errors.
        given: What the work is done on.
    """

    key: Key
    name: str
    given: Given


@dataclass
class _Sent(Generic[Key]):
    """A task with its input in Ray's memory, where it stays until the task is done."""

    key: Key
    name: str
    given: Any
    n_deaths: int = 0


@dataclass(frozen=True)
class Cluster:
    """Ray, joined.

    Attributes:
        n_workers: The most tasks at the same time; None for what fits the machines.
    """

    n_workers: int | None

    def n_at_once(self, device: str) -> int:
        """Return how many tasks are with the workers.

        Raises:
            InputError: `no_resources`: no machine has what the tasks need.
        """
        import ray

        kind = "CPU" if device == "cpu" else "GPU"
        n_there = int(ray.cluster_resources().get(kind, 0))
        if n_there < 1:
            raise InputError(
                "no_resources", f"no machine of the Ray cluster has a {kind}; start Ray with one"
            )
        # One more than can run: who is done finds the next one waiting.
        return self.n_workers or n_there + 1

    @staticmethod
    def share(value: Any) -> Any:
        """Put what many tasks need where all machines reach it; see `fetch`."""
        import ray

        return ray.put(value)

    def run(
        self,
        work: Callable[[Given], Result],
        tasks: Iterable[Task[Key, Given]],
        done: Callable[[Key, Result], None],
        *,
        device: str,
    ) -> None:
        """Do every task in a worker of one thread, and report each when it is finished.

        A task whose worker dies is sent again after all others. If one fails, or the run is
        interrupted, those that are under way are finished and reported first.

        Args:
            work: A function of a module that all machines have.
            tasks: Made one by one as they are needed: inputs of more would only fill memory.
            done: Called in this process, in any order.
            device: `cpu`, or `cuda` for a GPU per task.

        Raises:
            GadcError: What `work` raised.
            InputError: `machines_differ`: a machine has other libraries than this one.
            RunError: `worker_died`: a task was given up, and all others are done; `task_failed`:
                `work` raised something else; `cluster_failed`.
        """
        import ray

        loop = _Loop(self._remote(device), work, done)
        try:
            loop.run(tasks, self.n_at_once(device))
        except ray.exceptions.RayError as error:
            raise RunError(
                "cluster_failed",
                f"Ray failed: {first_line(error)}; what is done is kept: run the same command "
                "again, it continues",
            ) from error
        except (Exception, KeyboardInterrupt, SystemExit):
            loop.drain()
            raise
        if loop.given_up:
            raise RunError(
                "worker_died",
                f"given up, because the worker died {MOST_DEATHS} times: {_shown(loop.given_up)}; "
                "all else is done and kept. Perhaps memory ran out: run the same command again, "
                "with fewer workers",
            )

    @staticmethod
    def _remote(device: str) -> Any:
        import ray

        # Ray would not count deaths for want of memory, and retry without end.
        return ray.remote(num_cpus=1, num_gpus=0 if device == "cpu" else 1, max_retries=0)(_checked)


class _Loop(Generic[Key, Given, Result]):
    """Tasks on their way."""

    def __init__(
        self, remote: Any, work: Callable[[Given], Result], done: Callable[[Key, Result], None]
    ) -> None:
        self._remote, self._work, self._done = remote, work, done
        self._versions = versions()
        self._running: dict[Any, _Sent[Key]] = {}
        self._again: collections.deque[_Sent[Key]] = collections.deque()
        self.given_up: list[str] = []

    def run(self, tasks: Iterable[Task[Key, Given]], n_at_once: int) -> None:
        """Do all tasks, and those again whose worker died."""
        import ray

        fresh = (_Sent(task.key, task.name, ray.put(task.given)) for task in tasks)
        while True:
            while len(self._running) < n_at_once:
                following = next(fresh, None) or (self._again.popleft() if self._again else None)
                if following is None:
                    break
                self._running[self._send(following)] = following
            if not self._running:
                return
            finished, _ = ray.wait(list(self._running))
            for sent in finished:
                self._take(sent)

    def _send(self, task: _Sent[Key]) -> Any:
        # The name is what Ray's tools show; it must be valid Unicode, file names need not be.
        name = task.name.encode(errors="backslashreplace").decode()
        return self._remote.options(name=name).remote(self._versions, self._work, task.given)

    def drain(self) -> None:
        """Report what is still finished; errors have been reported already."""
        import ray

        while self._running:
            (sent, *_), _ = ray.wait(list(self._running))
            task = self._running.pop(sent)
            try:
                result = ray.get(sent)
            except Exception:  # noqa: BLE001 - the first error is the one to be seen
                continue
            self._done(task.key, result)

    def _take(self, sent: Any) -> None:
        """Report a finished task, or put it back."""
        import ray
        from ray import exceptions

        task = self._running.pop(sent)
        try:
            result = ray.get(sent)
        except (
            exceptions.WorkerCrashedError,
            exceptions.OutOfMemoryError,
            exceptions.NodeDiedError,
            exceptions.ObjectLostError,
        ) as error:
            task.n_deaths += 1
            logger.warning(
                "%s: its worker died, %d of %d: %s",
                task.name,
                task.n_deaths,
                MOST_DEATHS,
                first_line(error),
            )
            if task.n_deaths < MOST_DEATHS:
                self._again.append(task)
            else:
                self.given_up.append(task.name)
            return
        except exceptions.RayTaskError as error:
            raise _as_ours(error, task.name) from error
        self._done(task.key, result)


def fetch(shared: Any) -> Any:
    """Return, in a task, what `Cluster.share` was given."""
    import ray

    return ray.get(shared)


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    return {name: importlib.metadata.version(name) for name in SAME_VERSIONS}


def _checked(expected: dict[str, str], work: Callable[[Given], Result], given: Given) -> Result:
    """Do a task, in a worker, if this machine computes as the driver's does."""
    found = versions()
    if found != expected:
        differing = [name for name in expected if found[name] != expected[name]]
        raise InputError(
            "machines_differ",
            f"machine {machine_name()} has {_listed(found, differing)}, the one of this command "
            f"{_listed(expected, differing)}; install the same on all machines",
        )
    torch.set_num_threads(1)
    return work(given)


def machine_name() -> str:
    """Return what Ray calls this machine, its address."""
    import ray

    name: str = ray.util.get_node_ip_address()
    return name


def _listed(found: dict[str, str], names: list[str]) -> str:
    return ", ".join(f"{name} {found[name]}" for name in names)


def _as_ours(error: Any, name: str) -> GadcError:
    """Return the error of a task as gadc's own."""
    cause = error.cause
    if isinstance(cause, GadcError):
        return cause
    if missing := NOT_INSTALLED.search(str(cause)):
        return InputError(
            "machines_differ",
            f"a machine of the cluster lacks this gadc or one of its libraries ({missing[0]}); "
            "install the same on all machines",
        )
    return RunError("task_failed", f"{name}: {type(cause).__name__}: {first_line(cause)}")


def _shown(names: list[str]) -> str:
    left = len(names) - MOST_SHOWN
    return ", ".join(names[:MOST_SHOWN]) + (f" and {left} more" if left > 0 else "")


def first_line(error: BaseException) -> str:
    """Return the beginning of an error's message."""
    line = str(error).strip().partition("\n")[0]
    return line if len(line) <= MOST_CHARACTERS else line[:MOST_CHARACTERS] + " ..."
