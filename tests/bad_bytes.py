"""Image files made byte by byte: what encoders write, and what no encoder would."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDE_PX = 40
LEVELS = np.random.default_rng(20240).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
RGB = Image.fromarray(LEVELS)


def encode(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def frames(n_frames: int = 3) -> list[Image.Image]:
    return [Image.fromarray(np.roll(LEVELS[:24, :24], shift, axis=0)) for shift in range(n_frames)]


def encode_frames(format_name: str) -> bytes:
    first, *rest = frames()
    return encode(first, format_name, save_all=True, append_images=rest)


def good_files() -> dict[str, bytes]:
    """One whole file of every format and kind, to be cut and mutated."""
    return {
        "baseline.jpg": encode(RGB, "JPEG"),
        "progressive.jpg": encode(RGB, "JPEG", progressive=True),
        "grey.jpg": encode(RGB.convert("L"), "JPEG"),
        "cmyk.jpg": encode(RGB.convert("CMYK"), "JPEG"),
        "rgb.png": encode(RGB, "PNG"),
        "palette.png": encode(RGB.quantize(16), "PNG"),
        "animated.png": encode_frames("PNG"),
        "lossy.webp": encode(RGB, "WEBP"),
        "lossless.webp": encode(RGB, "WEBP", lossless=True),
        "animated.webp": encode_frames("WEBP"),
        "single.gif": encode(RGB, "GIF"),
        "animated.gif": encode_frames("GIF"),
        "rgb.bmp": encode(RGB, "BMP"),
        "palette.bmp": encode(RGB.quantize(16), "BMP"),
        "raw.tif": encode(RGB, "TIFF"),
        "lzw.tif": encode(RGB, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encode(RGB, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encode(RGB, "TIFF", compression="jpeg"),
        "pages.tif": encode_frames("TIFF"),
        "float.tif": encode(Image.fromarray(LEVELS[..., 0].astype(np.float32)), "TIFF"),
    }


def png_chunk(kind: bytes, content: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def png(
    width: int,
    height: int,
    *,
    bits: int = 8,
    colour: int = 2,
    pixels: bytes = b"\0",
    extra: bytes = b"",
) -> bytes:
    """Build a PNG by hand; `pixels` are filtered rows, `extra` goes before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", zlib.compress(pixels))
        + png_chunk(b"IEND", b"")
    )


def png_with(extra: bytes) -> bytes:
    """Return a good 40 x 40 PNG with chunks inserted behind its header."""
    return encode(RGB, "PNG")[:33] + extra + encode(RGB, "PNG")[33:]


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg_with(segment: bytes, content: bytes | None = None) -> bytes:
    """Return a JPEG with a segment inserted behind its start."""
    content = encode(RGB, "JPEG") if content is None else content
    return content[:2] + segment + content[2:]


def exif(orientation: int, *, kind: int = 3, order: str = ">") -> bytes:
    mark = b"MM\0*" if order == ">" else b"II*\0"
    value = struct.pack(order + {1: "Bxxx", 3: "Hxx", 4: "I", 5: "I"}[kind], orientation)
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    return b"Exif\0\0" + mark + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def jpeg_frame(content: bytes) -> int:
    """Return where the frame header of a baseline JPEG starts."""
    return content.index(b"\xff\xc0")


def gif_frame(content: bytes) -> int:
    """Return where the first frame of a GIF starts, behind a palette of 256 colours."""
    return content.index(b",", 13 + 3 * 256)


def patch(content: bytes, position: int, new: bytes) -> bytes:
    return content[:position] + new + content[position + len(new) :]


def tiff(tags: dict[int, tuple[int, int]], pixels: bytes = b"\0" * 64) -> bytes:
    """Build a little-endian TIFF: tag -> (type, value); pixels lie behind the directory."""
    entries = {256: (3, 8), 257: (3, 8), 258: (3, 8), 259: (3, 1), 262: (3, 1), 277: (3, 1)}
    start = 8 + 2 + 12 * (len({*entries, *tags, 273, 278, 279})) + 4
    entries |= {273: (4, start), 278: (3, 8), 279: (4, len(pixels))} | tags
    directory = struct.pack("<H", len(entries))
    for tag, (kind, value) in sorted(entries.items()):
        directory += struct.pack("<HHII", tag, kind, 1, value)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + pixels
