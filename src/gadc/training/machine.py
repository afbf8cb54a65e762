"""The machine a run is on: devices and precision through accelerate, and signals."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch

from gadc.errors import InputError, MissingExtraError
from gadc.training.config import TrainConfig

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

EXIT_TERMINATED = 128 + signal.SIGTERM


def open_accelerator(config: TrainConfig, out: Path, device: str) -> "Accelerator":
    """Return what knows this process's device, its precision and the other processes.

    Args:
        config: For precision, compilation and tracker.
        out: Folder of the tracker's files.
        device: `auto` or `cpu`.

    Raises:
        MissingExtraError: accelerate or the tracker is not installed.
        InputError: `unknown_device` or `precision_unavailable`.
    """
    try:
        from accelerate.accelerator import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.tracking import get_available_trackers
    except ImportError as error:
        raise MissingExtraError(
            "missing_extra", "training needs accelerate: pip install 'gadc[train]'"
        ) from error
    if device not in ("auto", "cpu"):
        raise InputError(
            "unknown_device",
            f"device {device!r}: training takes auto or cpu; choose GPUs with CUDA_VISIBLE_DEVICES "
            "and start one process each with `accelerate launch`",
        )
    if config.tracker != "none" and config.tracker not in map(str, get_available_trackers()):
        # accelerate itself only warns, and then records nothing.
        raise MissingExtraError(
            "missing_extra",
            f"tracker={config.tracker!r} needs {config.tracker}: pip install {config.tracker}, or "
            "use tracker='none'",
        )
    # accelerate keeps precision and device of the process's first run and refuses others.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return Accelerator(
            mixed_precision=config.precision,
            cpu=device == "cpu",
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(out),
            dynamo_backend="inductor" if config.compile else "no",
        )
    except ValueError as error:
        raise InputError(
            "precision_unavailable",
            f"precision={config.precision!r} or tracker={config.tracker!r} can't be used here: "
            f"{error}",
        ) from error


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Let tensor cores round float32 products to TF32 while a model trains, and only then."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextlib.contextmanager
def noted_signals() -> Iterator[list[BaseException]]:
    """Collect SIGINT and SIGTERM: a step is finished and saved before the run ends.

    A second signal of the same kind acts at once.
    """
    received: list[BaseException] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: FrameType | None) -> None:
        is_keyboard = number == signal.SIGINT
        received.append(KeyboardInterrupt() if is_keyboard else SystemExit(EXIT_TERMINATED))
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
