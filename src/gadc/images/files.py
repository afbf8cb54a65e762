"""Reading bytes from disk: the same bytes that were scanned, or an `ImageError`."""

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gadc.images.faults import ImageError

MAX_IMAGE_BYTES = 1 << 30
"""More than any image within the default pixel limit needs, less than the memory of a laptop."""
RETRIED_ERRNOS = frozenset([errno.EIO, errno.ESTALE])
RETRY_WAITS_SECONDS = (0.1, 0.4, 1.6)

Result = TypeVar("Result")


class Stamp(NamedTuple):
    """What a file looked like when it was scanned."""

    n_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        """Take the stamp from a stat result."""
        return cls(status.st_size, status.st_mtime_ns)


def with_retries(action: Callable[[], Result]) -> Result:
    """Call `action` again, after a pause, on errors that network disks recover from.

    Raises:
        OSError: Another error, or still the same one after the last pause.
    """
    for wait_seconds in RETRY_WAITS_SECONDS:
        try:
            return action()
        except OSError as error:
            if error.errno not in RETRIED_ERRNOS:
                raise
            time.sleep(wait_seconds)
    return action()


def read_range(path: str, stamp: Stamp, *, offset: int = 0, n_bytes: int | None = None) -> bytes:
    """Return bytes of a file that has not changed since its scan.

    Args:
        path: The file.
        stamp: What it looked like.
        offset: Where to start.
        n_bytes: How many; None for the rest.

    Raises:
        ImageError: `changed`, `io_error` or `too_large`.
    """
    length = stamp.n_bytes - offset if n_bytes is None else n_bytes
    if length > MAX_IMAGE_BYTES:
        raise ImageError("too_large", f"{length} bytes; the limit is {MAX_IMAGE_BYTES}")
    try:
        content = with_retries(lambda: _read_unchanged(path, stamp, offset, length))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("changed", f"gone since the scan: {error.strerror}") from error
    except OSError as error:
        raise ImageError("io_error", f"can't be read: {error.strerror or error}") from error
    if content is None:
        raise ImageError("changed", "size or time of change differ from the scan; scan again")
    return content


def _read_unchanged(path: str, stamp: Stamp, offset: int, length: int) -> bytes | None:
    # Not blocking: the file may have become a pipe that nobody writes to.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode) or Stamp.of(before) != stamp:
            return None
        parts: list[bytes] = []
        left = length
        while left and (part := os.pread(descriptor, left, offset + length - left)):
            parts.append(part)
            left -= len(part)
        if left or Stamp.of(os.fstat(descriptor)) != stamp:
            return None
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class FileReader:
    """One image, one file.

    Attributes:
        root: What the names are relative to.
        names: One path per image; an absolute one ignores `root`.
        sizes: Bytes of each file at the scan, int64 [n].
        mtimes_ns: Time of change of each file at the scan, int64 [n].
    """

    root: str
    names: Sequence[str]
    sizes: NDArray[np.int64]
    mtimes_ns: NDArray[np.int64]

    def read(self, position: int) -> bytes:
        """Return the file's bytes."""
        stamp = Stamp(int(self.sizes[position]), int(self.mtimes_ns[position]))
        return read_range(self.path(position), stamp)

    def path(self, position: int) -> str:
        """Return the file's path."""
        return os.path.join(self.root, self.names[position])
