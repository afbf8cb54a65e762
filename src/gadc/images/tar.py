"""The members of a tar archive, by offset; nothing is ever extracted.

Python's own reader takes an archive that was cut for a shorter one; this one demands the end.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK_BYTES = 512
MAX_HEADER_BYTES = 1 << 20
"""Long names and extended headers are a few hundred bytes."""

REGULAR_KINDS = frozenset([b"0", b"\0", b"7"])
KINDS_WITHOUT_DATA = frozenset([b"1", b"2", b"3", b"4", b"5", b"6"])
FOLDER = b"5"
GNU_SPARSE = b"S"
KIND_NAMES = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"6": "pipe",
    GNU_SPARSE: "sparse file",
}
DRIVE = re.compile(r"[A-Za-z]:")


class TarDamage(Exception):
    """The archive is cut or corrupt from here on."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry.

    Attributes:
        name: Its path in the archive, without a leading `./`.
        kind: The type flag.
        offset: Where its data start.
        n_bytes: How long they are.
    """

    name: str
    kind: bytes
    offset: int
    n_bytes: int

    @property
    def hazard(self) -> str | None:
        """Say why the member must not be used; None for a regular file with a safe name."""
        if self.kind not in REGULAR_KINDS:
            return KIND_NAMES.get(self.kind, f"entry of type {self.kind!r}")
        return name_hazard(self.name)


def name_hazard(name: str) -> str | None:
    """Say why a member's path is not safe to join to a folder; None if it is."""
    parts = re.split(r"[/\\]", name)
    if not parts[-1]:
        return "empty name"
    if not parts[0] or DRIVE.match(name):
        return "absolute path"
    return "path leads upwards" if ".." in parts else None


def read_members(descriptor: int, n_bytes: int) -> Iterator[Member]:
    """Yield every member but plain folders, in archive order.

    Source: POSIX.1-2017 pax, "ustar Interchange Format"; the GNU tar manual for long names, base
    256 numbers and sparse files.

    Args:
        descriptor: The open archive.
        n_bytes: Its length.

    Raises:
        TarDamage: A header or a member is cut or corrupt, the two zero blocks at the end are
            missing, or something follows them.
    """
    position = 0
    long_name: str | None = None
    extended: dict[str, str] = {}
    while True:
        header = _read(descriptor, position, BLOCK_BYTES)
        if not any(header):
            _check_end(descriptor, position, n_bytes)
            return
        _check_sum(header, position)
        kind = header[156:157]
        size = _number(header[124:136], position)
        data = position + BLOCK_BYTES
        if kind in (b"L", b"K", b"x", b"X", b"g"):
            if size > MAX_HEADER_BYTES:
                raise TarDamage(f"an extended header of {size} bytes at byte {position}")
            payload = _read(descriptor, data, size)
            if kind == b"L":
                long_name = _text(payload)
            elif kind in (b"x", b"X"):
                extended = _pax_records(payload, position)
            position = data + _padded(size)
            continue
        if kind == GNU_SPARSE:
            data = _skip_sparse_map(descriptor, header, data)
        name = extended.get("path") or long_name or _header_name(header)
        if "size" in extended:
            size = _decimal(extended["size"], position)
        if any(key.startswith("GNU.sparse.") for key in extended):
            kind = GNU_SPARSE
        if kind in KINDS_WITHOUT_DATA or (kind in REGULAR_KINDS and name.endswith("/")):
            size = 0
        if data + size > n_bytes:
            raise TarDamage(f"member {name!r} ends at byte {data + size} of {n_bytes}")
        is_folder = kind == FOLDER or (kind in REGULAR_KINDS and name.endswith("/"))
        # A folder's path is looked at like a file's: `../` in a folder is no better.
        if not is_folder or name_hazard(name.rstrip("/") or "/"):
            yield Member(name.removeprefix("./"), kind, data, size)
        position = data + _padded(size)
        long_name, extended = None, {}


def _read(descriptor: int, offset: int, n_bytes: int) -> bytes:
    content = os.pread(descriptor, n_bytes, offset)
    if len(content) < n_bytes:
        raise TarDamage(f"the archive ends at byte {offset + len(content)}, inside a header")
    return content


def _check_end(descriptor: int, position: int, n_bytes: int) -> None:
    """Demand a second zero block, and nothing but zeros after it."""
    if position + 2 * BLOCK_BYTES > n_bytes:
        raise TarDamage("the two zero blocks at the end are missing")
    while position < n_bytes:
        content = os.pread(descriptor, MAX_HEADER_BYTES, position)
        if content.count(0) != len(content):
            raise TarDamage(f"data after the end, at byte {position} or later: joined archives?")
        position += max(len(content), 1)


def _check_sum(header: bytes, position: int) -> None:
    expected = _number(header[148:156], position)
    if expected != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise TarDamage(f"the header at byte {position} is corrupt (checksum)")


def _number(field: bytes, position: int) -> int:
    """Read an octal field, or GNU's base 256."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise TarDamage(f"a negative number in the header at byte {position}")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:])
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        raise TarDamage(f"a number in the header at byte {position} is corrupt") from None


def _decimal(text: str, position: int) -> int:
    if not (text.isascii() and text.isdigit()):
        raise TarDamage(f"size {text!r} of the member at byte {position} is no number")
    return int(text)


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _header_name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax_records(payload: bytes, position: int) -> dict[str, str]:
    """Read records of `<length> <key>=<value>` and a newline."""
    records = {}
    start = 0
    while start < len(payload) and payload[start]:
        length, space, _ = payload[start : start + 20].partition(b" ")
        stop = start + (int(length) if length.isdigit() else 0)
        record = payload[start + len(length) + 1 : stop - 1]
        key, equals, value = record.partition(b"=")
        if not (space and equals and start < stop <= len(payload)):
            raise TarDamage(f"the extended header at byte {position} is corrupt")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        start = stop
    return records


def _skip_sparse_map(descriptor: int, header: bytes, data: int) -> int:
    """Return where the data of an old GNU sparse member start."""
    is_extended = header[482]
    while is_extended:
        is_extended = _read(descriptor, data, BLOCK_BYTES)[504]
        data += BLOCK_BYTES
    return data
