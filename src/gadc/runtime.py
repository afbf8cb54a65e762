"""Device choice, reproducible generators and progress; importing it changes nothing."""

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
import torch

from gadc.errors import InputError

DeviceName = Literal["auto", "cpu", "cuda"]


def pick_device(name: str = "auto") -> torch.device:
    """Return the torch device for `name`.

    Args:
        name: `auto` (CUDA when there is one), `cpu`, `cuda` or `cuda:<index>`.

    Raises:
        InputError: The device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            "unknown_device", f"device {name!r} is not known; use auto, cpu, cuda or cuda:<index>"
        ) from error
    if device.type not in ("cpu", "cuda"):  # torch knows others, gadc's arithmetic doesn't
        raise InputError(
            "unknown_device", f"device {name!r} is not one of auto, cpu, cuda and cuda:<index>"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("no_cuda", f"device {name!r} asked for, but no CUDA device; use cpu")
    return device


def generator(seed: int, *keys: object) -> np.random.Generator:
    """Return a NumPy generator that depends on `seed` and `keys` alone.

    Args:
        seed: The user's seed.
        *keys: What the numbers are for and their index, such as `("probe", class_name)`.
    """
    text = json.dumps([seed, *[str(key) for key in keys]])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16]))


class Progress(Protocol):
    """What long loops report to; see `progress`."""

    def advance(self, n_items: int = 1) -> None:
        """Count `n_items` more as done."""


class _Silent:
    def advance(self, n_items: int = 1) -> None:
        pass


class _JsonLines:
    """One JSON object a line on stderr, at most every `seconds_between`."""

    seconds_between = 5.0

    def __init__(self, stage: str, n_total: int) -> None:
        self.stage, self.n_total, self.n_done = stage, n_total, 0
        self.started = self.last_written = time.monotonic()

    def advance(self, n_items: int = 1) -> None:
        self.n_done += n_items
        now = time.monotonic()
        if now - self.last_written >= self.seconds_between or self.n_done == self.n_total:
            self.last_written = now
            self.write(now)

    def write(self, now: float) -> None:
        elapsed_seconds = now - self.started
        left = elapsed_seconds / max(self.n_done, 1) * (self.n_total - self.n_done)
        record = {
            "stage": self.stage,
            "done": self.n_done,
            "total": self.n_total,
            "elapsed_seconds": round(elapsed_seconds, 1),
            "left_seconds": round(left, 1),
        }
        sys.stderr.write(json.dumps(record) + "\n")
        sys.stderr.flush()


ProgressStyle = Literal["auto", "silent"]


@contextlib.contextmanager
def progress(stage: str, n_total: int, *, style: ProgressStyle = "silent") -> Iterator[Progress]:
    """Show how far a loop is, on stderr.

    Args:
        stage: What is being done, such as `features`.
        n_total: Number of items.
        style: `auto` draws a bar on a terminal and writes JSON lines elsewhere; `silent` (what
            the library uses unless told otherwise) writes nothing.
    """
    if style == "silent":
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _JsonLines(stage, n_total)
    else:
        # Imported here: drawing a bar is the only use, and most runs of the library never do.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(stage, total=n_total)

            class _Bar:
                def advance(self, n_items: int = 1) -> None:
                    bar.advance(task, n_items)

            yield _Bar()
