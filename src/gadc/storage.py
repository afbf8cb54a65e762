"""Files that are either absent or whole: atomic writes, digests, locks."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gadc.errors import InputError, RunError

TEMPORARY_PREFIX = ".gadc-tmp-"
LOCK_NAME = ".gadc-lock"
OWNER_NAME = ".gadc-lock-owner.json"
LONGEST_NAME_BYTES = 250
READ_CHUNK_BYTES = 1 << 20
ESCAPED = re.compile(r"\\(\\|x[0-9a-f]{2})")
SURROGATE = re.compile("[\udc80-\udcff]")


def canonical_json(value: Any) -> str:
    """Serialise `value` so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(value: Any) -> str:
    """Return the hexadecimal SHA-256 of `value` in canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def escape_name(name: str) -> str:
    r"""Return `name` as valid Unicode: an undecodable byte becomes `\xNN`, a backslash `\\`."""
    doubled = name.replace("\\", "\\\\")
    return SURROGATE.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", doubled)


def unescape_name(text: str) -> str:
    """Undo `escape_name`."""
    return ESCAPED.sub(
        lambda match: "\\" if match[1] == "\\" else chr(0xDC00 + int(match[1][1:], 16)), text
    )


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there.

    A reader sees the old file, or the whole new one. The parent folder must exist.

    Args:
        path: The final place.
        write: Called with the temporary path.

    Raises:
        RunError: The disk is full or refuses the write; nothing is left behind.
    """
    temporary = path.with_name(_temporary_name(path.name))
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def is_disk_full(error: OSError) -> bool:
    """Tell whether the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_error(path: Path, error: OSError) -> RunError:
    """Return what to raise when `path` could not be written."""
    if is_disk_full(error):
        return RunError(
            "disk_full", f"no space left for {path}; free some and run the same command again"
        )
    return RunError("write_failed", f"could not write {path}: {error}")


def refused_by_system(error: OSError) -> RunError:
    """Return what to say of a file, folder or stream that could not be read, made or removed."""
    name = "what is printed" if error.filename is None else error.filename
    if is_disk_full(error):
        return write_error(Path(name), error)
    return RunError("system_error", f"{name}: {error.strerror}; repair or remove it")


def _temporary_name(name: str) -> str:
    """Return a name of this process's for `name`, with as much of it as file systems allow."""
    start = os.fsencode(f"{TEMPORARY_PREFIX}{os.getpid()}-{name}")[:LONGEST_NAME_BYTES]
    return start.decode("utf-8", "ignore")  # without a character that was cut in the middle


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    write_atomically(path, lambda temporary: _write_all(temporary, content))


def _write_all(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically; undecodable names survive (`surrogateescape`)."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def sweep_temporaries(folder: Path) -> None:
    """Remove what a killed run left half-written; call it while holding the folder's lock.

    Folders below have locks, and perhaps writers, of their own.
    """
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        leftover.unlink(missing_ok=True)


def prepare_output(folder: Path, *inputs: Path) -> None:
    """Create an output folder that can't harm the inputs.

    Args:
        folder: Where results will go.
        *inputs: Files or folders that are read.

    Raises:
        InputError: An input is missing; `folder` is an input, lies inside one, is a file, or
            can't be written.
    """
    target = folder.resolve()
    for given in inputs:
        if not given.exists():
            raise InputError("missing_source", f"{given}: there is no such file or folder")
        source = given.resolve()
        if target == source or (source.is_dir() and source in target.parents):
            raise InputError(
                "output_inside_input",
                f"output {folder} lies inside the input {given}; choose a folder outside it",
            )
    if folder.exists() and not folder.is_dir():
        raise InputError("output_is_file", f"output {folder} is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("output_not_writable", f"can't create {folder}: {error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("output_not_writable", f"no permission to write in {folder}")


@contextlib.contextmanager
def exclusive(folder: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the folder's lock: one writer at a time; the lock of a dead process is free.

    Args:
        folder: An existing folder.
        wait_seconds: How long to wait for another writer; 0 fails at once, negative waits for ever.

    Raises:
        InputError: `bad_argument`: `wait_seconds` is no number.
        RunError: `locked`: another process holds it; the message names it. `disk_full` or
            `write_failed`: the folder takes no lock.
    """
    if math.isnan(wait_seconds):
        raise InputError("bad_argument", "wait_seconds=nan must be a number; below 0 is for ever")
    owner_path = folder / OWNER_NAME
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout as error:
        try:
            owner = json.loads(owner_path.read_text())
            who = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        except (OSError, ValueError, KeyError):
            who = "another process"
        raise RunError(
            "locked", f"{folder} is in use by {who}; wait for it or choose another folder"
        ) from error
    except OSError as error:
        raise write_error(folder / LOCK_NAME, error) from error
    try:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        write_json(owner_path, owner)
        sweep_temporaries(folder)
        yield
    finally:
        owner_path.unlink(missing_ok=True)
        lock.release()
