"""The orientation a camera wrote beside the pixels."""

import re
import struct
from typing import Any

from PIL import Image

ORIENTATION_TAG = 0x0112
UNSIGNED_FORMATS = {1: "B", 3: "H", 4: "I"}
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(info: dict[Any, Any]) -> int:
    """Return how the image has to be turned, 1 (not at all) to 8.

    Only the one tag is read, so the rest of the metadata can't do harm.

    Args:
        info: What Pillow found beside the pixels: `exif` or, failing that, `xmp`, as bytes.

    Raises:
        ValueError: The EXIF block is corrupt.
    """
    exif = info.get("exif")
    orientation = _from_exif(exif) if isinstance(exif, bytes) and exif else None
    xmp = info.get("xmp")
    if orientation is None and isinstance(xmp, bytes):
        match = XMP_ORIENTATION.search(xmp)
        orientation = int(match[1]) if match else None
    return orientation or 1


def _from_exif(exif: bytes) -> int | None:
    """Return the tag's value, None without one.

    Source: Exif 2.32, section 4.5; the block is a TIFF file without pixels.
    """
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        raise ValueError("the EXIF block has no TIFF header")
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (n_entries,) = struct.unpack_from(order + "H", exif, directory)
        for index in range(n_entries):
            entry = directory + 2 + index * 12
            tag, kind, _, _ = struct.unpack_from(order + "HHII", exif, entry)
            if tag == ORIENTATION_TAG:
                (value,) = struct.unpack_from(order + UNSIGNED_FORMATS[kind], exif, entry + 8)
                if not 0 <= value <= 8:
                    raise ValueError(f"EXIF orientation {value} is not one of 1 to 8")
                return int(value)
    except (struct.error, KeyError) as error:
        raise ValueError(f"the EXIF block is cut or corrupt: {error!r}") from error
    return None
