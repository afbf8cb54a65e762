"""Waiting for other processes; no result depends on how long."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

# A busy machine may start processes slowly.
PATIENCE_SECONDS = 600.0


def wait_until(
    condition: Callable[[], object], *, while_running: subprocess.Popen | None = None
) -> None:
    """Return as soon as `condition` holds; a process must not have ended before."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert while_running is None or while_running.poll() is None, while_running.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def is_running(process: int) -> bool:
    """Return whether the process with this id is there and no zombie; Linux only."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
