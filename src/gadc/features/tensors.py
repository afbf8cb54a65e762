"""Safetensors files that are larger than memory: written row by row, read as memory maps."""

import json
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gadc.errors import InputError

MAX_HEADER_BYTES = 16 << 20
"""A part's header names a few thousand rows in under 1 MB; the format itself allows 100 MB."""
LENGTH_BYTES = 8
ALIGNMENT_BYTES = 8

# bfloat16 has no NumPy type: its bits are read as uint16 and widened by `StoredTensor.numbers`.
NUMPY_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        stored_type: The file's name for its number type, such as `F32` or `BF16`.
        values: Read-only memory map; the bits as uint16 for `BF16`.
    """

    stored_type: str
    values: NDArray[Any]

    def numbers(self, rows: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Return some rows, or all, as NumPy's own numbers; all are a memory map if they can be."""
        found = self.values if rows is None else self.values[rows]
        if self.stored_type != "BF16":
            return found
        return (found.astype(np.uint32) << 16).view(np.float32)  # float32's upper half


def map_tensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Open a safetensors file without reading its tensors.

    Args:
        path: The file.

    Returns:
        Tensors by name, and the file's metadata.

    Raises:
        InputError: The file is not whole, not safetensors, or its header is too large.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(path, file)
        with safe_open(path, framework="numpy") as _:  # checks offsets: no holes, no overlaps
            pass
        content = np.memmap(path, dtype=np.uint8, mode="r")
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            "unreadable_features", f"{path} is not a readable safetensors file: {error}"
        ) from error
    metadata = header.pop("__metadata__", {})
    body = content[LENGTH_BYTES + _header_bytes(content) :]
    tensors = {}
    for name, entry in header.items():
        stored_type = entry["dtype"]
        if stored_type not in NUMPY_TYPES:
            raise InputError(
                "unreadable_features",
                f"{path}: tensor {name!r} has type {stored_type}; "
                f"use one of {', '.join(NUMPY_TYPES)}",
            )
        begin, end = entry["data_offsets"]
        values = body[begin:end].view(NUMPY_TYPES[stored_type]).reshape(entry["shape"])
        tensors[name] = StoredTensor(stored_type, values)
    return tensors, metadata


def _read_header(path: Path, file: BinaryIO) -> dict[str, Any]:
    length = file.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        raise ValueError("shorter than its length field")
    (n_bytes,) = struct.unpack("<Q", length)
    if n_bytes > MAX_HEADER_BYTES:
        raise InputError(
            "header_too_large",
            f"{path}: header of {n_bytes} bytes; at most {MAX_HEADER_BYTES} are read",
        )
    header: dict[str, Any] = json.loads(file.read(n_bytes))
    return header


def _header_bytes(content: NDArray[np.uint8]) -> int:
    return int(content[:LENGTH_BYTES].view("<u8")[0])


def release_pages(array: NDArray[Any]) -> None:
    """Give back the memory of a memory map's pages; they are read again when needed.

    Otherwise a pass over a file of 10 GB ends with 10 GB resident.
    """
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and type of each tensor."""


def tensor_file_bytes(shapes: Shapes, metadata: Mapping[str, str]) -> int:
    """Return the size of the file that `TensorWriter` makes of these."""
    header, ends = _layout(shapes, metadata)
    return len(header) + max(ends.values(), default=0)


def _layout(shapes: Shapes, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """Return a file's start up to the first tensor, and where each tensor ends behind it."""
    names = {np.dtype(numpy_type): name for name, numpy_type in NUMPY_TYPES.items()}
    names[np.dtype("<u2")] = "U16"
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    ends: dict[str, int] = {}
    begin = 0
    for name, (shape, dtype) in shapes.items():
        ends[name] = begin + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {
            "dtype": names[dtype],
            "shape": list(shape),
            "data_offsets": [begin, ends[name]],
        }
        begin = ends[name]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text, ends


class TensorWriter:
    """Write a safetensors file block by block, each tensor along its first axis.

    The bytes depend on the tensors and the metadata alone, not on the blocks.

    Args:
        path: The file to create.
        shapes: Shape and type by name; eight-byte types first, so that all are aligned.
        metadata: Strings for the header.
    """

    def __init__(
        self,
        path: Path,
        shapes: Shapes,
        metadata: Mapping[str, str],
    ) -> None:
        header, self._end = _layout(shapes, metadata)
        self._next = dict(zip(shapes, [0, *self._end.values()], strict=False))
        self._dtypes = {name: dtype for name, (_, dtype) in shapes.items()}
        self._body = len(header)
        self._file = path.open("wb")
        self._file.write(header)
        self._file.truncate(tensor_file_bytes(shapes, metadata))

    def append(self, name: str, block: NDArray[Any]) -> None:
        """Add rows to a tensor."""
        content = np.ascontiguousarray(block, dtype=self._dtypes[name]).tobytes()
        if self._next[name] + len(content) > self._end[name]:
            raise ValueError(f"tensor {name!r} gets more rows than its shape has")
        self._file.seek(self._body + self._next[name])
        self._file.write(content)
        self._next[name] += len(content)

    def extend(self, name: str, blocks: Iterable[NDArray[Any]]) -> None:
        """Add several blocks of rows to a tensor."""
        for block in blocks:
            self.append(name, block)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None and self._next != self._end:
            short = [name for name, position in self._next.items() if position != self._end[name]]
            raise ValueError(f"tensors {short} got fewer rows than their shapes have")
