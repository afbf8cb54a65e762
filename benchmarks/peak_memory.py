"""How much memory processes have taken at most."""

import resource
import sys
from pathlib import Path

BYTES_PER_GB = 1e9


def peak_gb(who: int) -> float:
    """Return the largest resident set of this process, or of the largest of its children.

    It begins with that of who started the process.
    """
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(who).ru_maxrss * unit_bytes / BYTES_PER_GB


def own_peak_gb() -> float:
    """Return the largest resident set of this process alone, where the system tells (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_gb(resource.RUSAGE_SELF)
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / BYTES_PER_GB
