"""What the bytes of an image file say about themselves, read without decoding a pixel."""

import itertools
import re
import struct
from collections.abc import Callable, Iterator
from typing import Literal, get_args

FormatName = Literal["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]
READABLE_FORMATS: tuple[FormatName, ...] = get_args(FormatName)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BMP_HEADER_BYTES = (12, 16, 40, 52, 56, 64, 108, 124)
"""Lengths of the second BMP header; they tell a bitmap from a text that starts with BM."""

OTHER_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"SIMPLE  =", "FITS"),
    (4, b"ftyp", "AVIF, HEIC or video"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"8BPS", "PSD"),
    (0, b"%PDF-", "PDF"),
    (0, b"%!PS", "EPS"),
    (0, b"\0\0\x01\0", "ICO"),
    (0, b"\0\0\x02\0", "CUR"),
    (0, b"icns", "ICNS"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5"),
    (0, b"gimp xcf", "XCF"),
)
NETPBM = re.compile(rb"P[1-7]\s+[\d#W]")
SVG = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]", re.S)
SNIFFED_BYTES = 1024

JPEG_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xD9)])
JPEG_START_OF_SCAN = 0xDA
JPEG_KEPT_APPLICATION = frozenset([0xE0, 0xEE])  # JFIF, and Adobe, which tells CMYK from YCCK
PNG_KEPT_ANCILLARY = frozenset([b"tRNS"])
GIF_EXTENSION, GIF_FRAME, GIF_TRAILER = 0x21, 0x2C, 0x3B
TIFF_TYPE_BYTES = dict(
    zip([*range(1, 14), 16, 17, 18], [1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8], strict=True)
)
TIFF_UNSIGNED = {1: "B", 3: "H", 4: "I", 16: "Q"}
TIFF_DATA_TAGS = ((273, 279), (324, 325))
"""Tags of (offsets, lengths) of the strips, and of the tiles."""
TIFF_PLACE_TAGS = frozenset(itertools.chain.from_iterable(TIFF_DATA_TAGS))


def identify(content: bytes) -> str | None:
    """Name the format from the first bytes, whatever the file is called.

    Returns:
        One of `READABLE_FORMATS`, the name of another image format, or None.
    """
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith(PNG_SIGNATURE):
        return "PNG"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if content.startswith(TIFF_SIGNATURES):
        return "TIFF"
    if content.startswith(b"BM") and int.from_bytes(content[14:18], "little") in BMP_HEADER_BYTES:
        return "BMP"
    for offset, signature, name in OTHER_SIGNATURES:
        if content.startswith(signature, offset):
            return name
    head = content[:SNIFFED_BYTES]
    if NETPBM.match(head):
        return "PPM"
    return "SVG" if SVG.match(head) else None


def canvas_size(name: FormatName, content: bytes) -> tuple[int, int] | None:
    """Read the size that Pillow would allocate or judge by itself while opening the file.

    Returns:
        Width and height; None for other formats, whose readers only look.

    Source: RFC 9649, section 2 (WebP); GIF89a, section 20: a frame may reach beyond the screen.
    """
    try:
        if name == "GIF":
            width, height = struct.unpack_from("<HH", content, 6)
            frames = (at for block, at in _gif_blocks(content) if block == GIF_FRAME)
            frame = next(frames, None)
            if frame is None:
                return None
            left, top, frame_width, frame_height = struct.unpack_from("<4H", content, frame + 1)
            return max(width, left + frame_width), max(height, top + frame_height)
        if name == "WEBP":
            chunk = content[12:16]
            if chunk == b"VP8X":
                low_width, high_width, low_height, high_height = struct.unpack_from(
                    "<HBHB", content, 24
                )
                return (high_width << 16 | low_width) + 1, (high_height << 16 | low_height) + 1
            if chunk == b"VP8L":
                (bits,) = struct.unpack_from("<I", content, 21)
                return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            if chunk == b"VP8 ":
                width, height = struct.unpack_from("<HH", content, 26)
                return width & 0x3FFF, height & 0x3FFF
    except (IndexError, struct.error):
        pass  # cut or corrupt; its reader will say so
    return None


def is_whole(name: FormatName, content: bytes) -> bool:
    """Tell whether the file has its end, so that a cut file is never taken for a smaller one.

    Pillow returns the pixels of a PNG that lost its last chunk, and of a GIF that lost its last
    frames; it names some cuts "truncated" and others not.
    """
    try:
        return _IS_WHOLE[name](content)
    except (IndexError, struct.error):
        return False


def n_jpeg_scans(content: bytes) -> int:
    """Count the scans of a progressive JPEG; inside a scan, 0xFF is never followed by 0xDA."""
    return content.count(b"\xff\xda")


def without_metadata(name: FormatName, content: bytes) -> bytes | None:
    """Return the file with its pixels and transparency only, or None if there is no such way.

    Text, EXIF, profiles and thumbnails are not worth an image: when one of them is broken or too
    large for Pillow's limits, the pixels can still be had.
    """
    if name == "PNG":
        parts = [content[:8]]
        for kind, start, stop in _png_chunks(content):
            if kind[:1].isupper() or kind in PNG_KEPT_ANCILLARY:
                parts.append(content[start:stop])
    elif name == "JPEG":
        parts = [content[:2]]
        scan = len(content)
        for marker, start, stop in _jpeg_segments(content):
            if marker == JPEG_START_OF_SCAN:
                scan = start
                break
            is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
            if not is_metadata or marker in JPEG_KEPT_APPLICATION:
                parts.append(content[start:stop])
        parts.append(content[scan:])
    else:
        return None
    kept = b"".join(parts)
    return kept if len(kept) < len(content) else None


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, stop) of every chunk."""
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4])
        stop = position + 12 + length
        yield content[position + 4 : position + 8], position, stop
        position = stop


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, stop) of every segment up to the first scan."""
    position = 2
    while position + 4 <= len(content):
        if content[position] != 0xFF or content[position + 1] == 0xFF:
            position += 1  # fill bytes
            continue
        marker = content[position + 1]
        if marker in JPEG_WITHOUT_LENGTH or marker == 0:
            stop = position + 2
        else:
            stop = position + 2 + int.from_bytes(content[position + 2 : position + 4])
        yield marker, position, stop
        if marker == JPEG_START_OF_SCAN:
            return
        position = stop


def _jpeg_is_whole(content: bytes) -> bool:
    scans = (stop for marker, _, stop in _jpeg_segments(content) if marker == JPEG_START_OF_SCAN)
    scan = next(scans, None)
    return scan is not None and content.find(b"\xff\xd9", scan) >= 0


def _png_is_whole(content: bytes) -> bool:
    end = content.rfind(b"\0\0\0\0IEND")
    return end >= 0 and end + 12 <= len(content)


def _webp_is_whole(content: bytes) -> bool:
    return 8 + int.from_bytes(content[4:8], "little") <= len(content)


def _gif_is_whole(content: bytes) -> bool:
    return any(block == GIF_TRAILER for block, _ in _gif_blocks(content))


def _gif_blocks(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield (block type, position) up to the trailer.

    Raises:
        IndexError: There is no trailer.
    """
    position = 13 + _gif_palette_bytes(content[10])
    while True:
        block = content[position]
        yield block, position
        if block == GIF_TRAILER:
            return
        if block == GIF_EXTENSION:  # label, then sub-blocks
            position += 2
        elif block == GIF_FRAME:  # descriptor, palette, code size, then sub-blocks
            position += 11 + _gif_palette_bytes(content[position + 9])
        else:
            position += 1  # padding, which decoders skip
            continue
        while content[position]:
            position += content[position] + 1
        position += 1


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _bmp_is_whole(content: bytes) -> bool:
    """Trust the declared length: asked only about a file that could not be decoded."""
    return int.from_bytes(content[2:6], "little") <= len(content)


def _tiff_is_whole(content: bytes) -> bool:
    """Check that the tags, strips and tiles of every page lie inside the file.

    Source: TIFF 6.0, section 2; BigTIFF has the same structure with wider words.
    """
    order = "<" if content.startswith(b"II") else ">"
    is_big = 43 in content[2:4]
    word = struct.Struct(order + ("Q" if is_big else "I"))
    count_of_entries = struct.Struct(order + ("Q" if is_big else "H"))
    entry_bytes = 4 + 2 * word.size
    unread = len(content)  # honest pages don't overlap, so none is looked at twice
    (directory,) = word.unpack_from(content, 8 if is_big else 4)
    pages = set()
    while directory and directory not in pages:
        pages.add(directory)
        (n_entries,) = count_of_entries.unpack_from(content, directory)
        entry = directory + count_of_entries.size
        unread -= n_entries * entry_bytes
        if unread < 0:
            return False
        places: dict[int, tuple[int, ...]] = {}
        for _ in range(n_entries):
            tag, kind = struct.unpack_from(order + "HH", content, entry)
            (count,) = word.unpack_from(content, entry + 4)
            n_bytes = TIFF_TYPE_BYTES.get(kind, 0) * count
            values = entry + 4 + word.size
            if n_bytes > word.size:
                (values,) = word.unpack_from(content, values)
            if tag in TIFF_PLACE_TAGS and kind in TIFF_UNSIGNED:
                unread -= n_bytes
            if values + n_bytes > len(content) or unread < 0:
                return False
            if tag in TIFF_PLACE_TAGS and kind in TIFF_UNSIGNED:
                numbers = f"{order}{count}{TIFF_UNSIGNED[kind]}"
                places[tag] = struct.unpack_from(numbers, content, values)
            entry += entry_bytes
        for starts, lengths in TIFF_DATA_TAGS:
            chunks = zip(places.get(starts, ()), places.get(lengths, ()), strict=False)
            if any(start + length > len(content) for start, length in chunks):
                return False
        (directory,) = word.unpack_from(content, entry)
    return True


_IS_WHOLE: dict[FormatName, Callable[[bytes], bool]] = {
    "JPEG": _jpeg_is_whole,
    "PNG": _png_is_whole,
    "WEBP": _webp_is_whole,
    "BMP": _bmp_is_whole,
    "TIFF": _tiff_is_whole,
    "GIF": _gif_is_whole,
}
