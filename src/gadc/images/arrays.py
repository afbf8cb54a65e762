"""Images and statistics in `.npz` files, as ADM's evaluator reads and writes them."""

import io
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gadc.errors import InputError
from gadc.images.source import ImageIndex

IMAGES_NAME = "arr_0"
"""What `numpy.savez` calls its first array."""
MAX_SMALL_BYTES = 1 << 30
MAX_EXPANSION = 100
"""A compressed array may take so many times its size in the file, or `MAX_SMALL_BYTES`."""
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a zip file's member: signature, length of the name, length of the extra field."""
NPY_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    TypeError,
    MemoryError,
    OverflowError,
    tokenize.TokenError,
)
"""What NumPy raises on a broken header, which it parses as a Python literal."""
ZIP_ERRORS = (*NPY_ERRORS, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
"""RuntimeError stands for an encrypted member or an unknown compression."""


@dataclass(frozen=True)
class StoredArray:
    """An array in an `.npz` file, of which only the header has been read.

    Attributes:
        shape: Of the array.
        dtype: Its number type; never Python objects.
        is_fortran: Whether the first index runs fastest.
        member: Its name in the archive.
        offset: Where its numbers begin in the file; None if they are compressed.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool
    member: str
    offset: int | None


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """Read the headers of the arrays in an `.npz` file.

    Raises:
        InputError: `missing_source`, `unreadable_source`, or `pickle_refused`: one of the arrays
            holds Python objects, whose loading can run code.
    """
    if not path.is_file():
        raise InputError("missing_source", f"there is no {path}; check the path")
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            return {
                member.filename.removesuffix(".npy"): _stored_array(path, archive, file, member)
                for member in archive.infolist()
            }
    except ZIP_ERRORS as error:
        if isinstance(error, InputError):
            raise
        raise InputError("unreadable_source", f"can't read {path}: {error}") from error


def read_array(path: Path, stored: StoredArray) -> NDArray[Any]:
    """Return an array: a read-only memory map, or in memory if it is compressed.

    Raises:
        InputError: `unreadable_source`.
    """
    try:
        if stored.offset is None:
            with np.load(path, allow_pickle=False) as arrays:
                found: NDArray[Any] = arrays[stored.member.removesuffix(".npy")]
            return found
        if 0 in stored.shape:
            return np.zeros(stored.shape, stored.dtype)
        return np.memmap(
            path,
            stored.dtype,
            mode="r",
            offset=stored.offset,
            shape=stored.shape,
            order="F" if stored.is_fortran else "C",
        )
    except ZIP_ERRORS as error:
        raise InputError("unreadable_source", f"can't read {path}: {error}") from error


def holds_images(arrays: dict[str, StoredArray]) -> bool:
    """Tell whether a file has images: 8-bit [n, height, width, 3] under the name `arr_0`."""
    found = arrays.get(IMAGES_NAME)
    return (
        found is not None
        and found.dtype == np.uint8
        and len(found.shape) == 4
        and found.shape[3] == 3
        and 0 not in found.shape
    )


def index_arrays(path: Path) -> ImageIndex:
    """Build the index of the images in `arr_0`, uint8 [n, height, width, 3], of an `.npz` file.

    Raises:
        InputError: `bad_shape`: no such images; or as `stored_arrays`.
    """
    arrays = stored_arrays(path)
    if not holds_images(arrays):
        described = ", ".join(f"{name} {a.dtype} {list(a.shape)}" for name, a in arrays.items())
        raise InputError(
            "bad_shape",
            f"{path} needs images as {IMAGES_NAME}, uint8 [n, height, width, 3]; it has "
            f"{described or 'nothing'}",
        )
    images = read_array(path, arrays[IMAGES_NAME])
    return ImageIndex(
        source=path,
        kind="npz",
        ids=[f"{path.name}#{row}" for row in range(len(images))],
        labels=None,
        class_names=[],
        excluded=[],
        quarantined=[],
        reader=_ArrayReader(images),
    )


class _ArrayReader:
    """Gives images as files of the one format that costs nothing to write and to decode."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images

    def read(self, position: int) -> bytes:
        content = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(self._images[position])).save(content, format="BMP")
        return content.getvalue()

    def path(self, position: int) -> str | None:
        return None


def _stored_array(
    path: Path, archive: zipfile.ZipFile, file: IO[bytes], member: zipfile.ZipInfo
) -> StoredArray:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{member.filename} is an array of version {version}")
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read_header(stream)
        n_header = stream.tell()
    if dtype.hasobject:
        raise InputError(
            "pickle_refused",
            f"{path}: {member.filename} holds Python objects, whose loading runs the code in them; "
            "save plain arrays with numpy.savez",
        )
    n_bytes = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
    if member.file_size != n_header + n_bytes:
        raise ValueError(f"{member.filename} has {member.file_size - n_header} bytes of {n_bytes}")
    offset = None
    if member.compress_type == zipfile.ZIP_STORED:
        offset = _data_offset(file, member) + n_header
        if offset + n_bytes > path.stat().st_size:
            raise ValueError(f"{member.filename} ends behind the end of the file")
    elif n_bytes > max(MAX_SMALL_BYTES, MAX_EXPANSION * member.compress_size):
        raise InputError(
            "too_large",
            f"{path}: {member.filename} declares {n_bytes} bytes in {member.compress_size}; "
            "save it uncompressed if it is real",
        )
    return StoredArray(shape, dtype, is_fortran, member.filename, offset)


def _data_offset(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    file.seek(member.header_offset)
    signature, n_name, n_extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"{member.filename} has no header")
    return int(member.header_offset) + LOCAL_HEADER.size + int(n_name) + int(n_extra)
