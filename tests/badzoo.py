"""Bad and odd image files, each made from code, with what `decode` must make of it.

`python tests/badzoo.py FOLDER` writes them, to try other tools on.
"""

import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from bad_bytes import (
    LEVELS,
    RGB,
    SIDE_PX,
    encode,
    encode_frames,
    exif,
    gif_frame,
    good_files,
    jpeg_frame,
    jpeg_segment,
    jpeg_with,
    patch,
    png,
    png_chunk,
    png_with,
    tiff,
)
from gadc.images.decode import DecodePolicy

CUT_FRACTIONS = (0.05, 0.25, 0.5, 0.75, 0.9)
PADDING_BYTES = 4
"""A TIFF may end with a few bytes that mean nothing."""
DEFAULT = DecodePolicy()


@dataclass(frozen=True)
class Animal:
    """One file: `code` is the expected fault, None if it decodes, with exactly these flags."""

    name: str
    content: bytes
    code: str | None = None
    flags: tuple[str, ...] = ()
    policy: DecodePolicy = DEFAULT


def cut_files() -> Iterator[Animal]:
    for name, content in good_files().items():
        cuts = [int(len(content) * fraction) for fraction in CUT_FRACTIONS]
        for cut in [*cuts, len(content) - PADDING_BYTES - 1]:
            yield Animal(f"cut-{cut}-{name}", content[:cut], "truncated")


def not_images() -> Iterator[Animal]:
    texts = {
        "empty.jpg": b"",
        "text.png": b"this is no image\n",
        "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "xml.png": b"<?xml version='1.0'?><error>denied</error>",
        "json.webp": b'{"error": "quota exceeded"}',
        "zeros.bmp": bytes(4096),
        "spaces.gif": b" " * 100,
        "noise.tif": LEVELS.tobytes()[1:200],
        "archive.jpg": b"PK\x03\x04" + bytes(60),
        "gzip.jpg": b"\x1f\x8b\x08\0" + bytes(60),
        "bm.bmp": b"BM stands for bitmap, but this is a text about them",
        "gif.gif": b"GIF is pronounced with a hard g",
        "riff.webp": b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "shifted.jpg": b"\n" + encode(RGB, "JPEG"),
        "one-byte.png": b"\x89",
    }
    return (Animal(name, content, "not_an_image") for name, content in texts.items())


def other_formats() -> Iterator[Animal]:
    files = {
        "fits.jpg": b"SIMPLE  =                    T" + bytes(100),
        "fits-gzip.png": b"SIMPLE  =                    T" + b"ZCMPTYPE= 'GZIP_1'" + bytes(80),
        "avif.jpg": encode(RGB, "AVIF"),
        "heic.jpg": b"\0\0\0\x18ftypheic" + bytes(40),
        "video.jpg": b"\0\0\0\x18ftypisom" + bytes(40),
        "jp2.jpg": encode(RGB, "JPEG2000"),
        "j2k.jpg": b"\xff\x4f\xff\x51" + bytes(40),
        "jxl.jpg": b"\xff\x0a" + bytes(40),
        "jxl-box.jpg": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40),
        "psd.png": b"8BPS\0\x01" + bytes(40),
        "pdf.jpg": b"%PDF-1.7\n" + bytes(40),
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "ico.png": encode(RGB, "ICO"),
        "cur.png": b"\0\0\x02\0\x01\0" + bytes(40),
        "icns.png": encode(RGB.resize((128, 128)), "ICNS"),
        "dds.png": encode(RGB, "DDS"),
        "qoi.png": b"qoif" + bytes(40),
        "exr.tif": b"\x76\x2f\x31\x01" + bytes(40),
        "hdr.tif": b"#?RADIANCE\n" + bytes(40),
        "hdf5.tif": b"\x89HDF\r\n\x1a\n" + bytes(40),
        "xcf.png": b"gimp xcf v011\0" + bytes(40),
        "ppm.jpg": encode(RGB, "PPM"),
        "pgm.jpg": encode(RGB.convert("L"), "PPM"),
        "pbm.jpg": encode(RGB.convert("1"), "PPM"),
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"></svg>',
        "svg-xml.png": b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg width="1"/>',
    }
    for name, content in files.items():
        yield Animal(name, content, "format_not_allowed")
    jpeg_only = DecodePolicy(formats=("JPEG",))
    yield Animal("refused.png", encode(RGB, "PNG"), "format_not_allowed", policy=jpeg_only)


def too_large() -> Iterator[Animal]:
    jpeg, gif, bmp = (encode(RGB, name) for name in ("JPEG", "GIF", "BMP"))
    webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\x3f\0\xff\x3f\0"
    sizes = {
        "header.png": png(100_000, 100_000),
        # Pillow only warns between one and two times its own limit of 89,478,485.
        "between-one-and-two.png": png(10_000, 10_000),
        "just-above.png": png(8_900_001, 10),
        "strip.png": png(89_000_001, 1),
        # 400 million real pixels in 50 kB.
        "real-bomb.png": png(20_000, 20_000, bits=1, colour=0, pixels=bytes(2501 * 20_000)),
        "header.jpg": patch(jpeg, jpeg_frame(jpeg) + 5, b"\xff\xdc\xff\xdc"),
        "header.webp": webp,
        "header.gif": patch(gif, 6, b"\xff\xff\xff\xff"),
        "frame-outside.gif": patch(gif, gif_frame(gif) + 5, b"\x00\x40\x00\x40"),
        "header.bmp": patch(bmp, 18, struct.pack("<ii", 60_000, 60_000)),
        "header.tif": tiff({256: (4, 60_000), 257: (4, 60_000), 278: (4, 60_000)}),
        "tile.tif": tiff({322: (4, 65_536), 323: (4, 65_536)}),
    }
    for name, content in sizes.items():
        yield Animal(f"large-{name}", content, "too_large")
    small = DecodePolicy(max_pixels=SIDE_PX * SIDE_PX - 1)
    yield Animal("large-by-choice.png", encode(RGB, "PNG"), "too_large", policy=small)
    exact = DecodePolicy(max_pixels=SIDE_PX * SIDE_PX)
    yield Animal("not-large.png", encode(RGB, "PNG"), policy=exact)


def animated() -> Iterator[Animal]:
    skip = DecodePolicy(animated="skip")
    for name, format_name in (("gif", "GIF"), ("webp", "WEBP"), ("png", "PNG"), ("tif", "TIFF")):
        content = encode_frames(format_name)
        yield Animal(f"frames.{name}", content, flags=("animated",))
        yield Animal(f"frames-skipped.{name}", content, "animated", policy=skip)
        yield Animal(f"single-not-skipped.{name}", encode(RGB, format_name), policy=skip)


def colours() -> Iterator[Animal]:
    cmyk = encode(RGB.convert("CMYK"), "JPEG")
    adobe = cmyk.index(b"\xff\xee")
    yield Animal("cmyk-adobe.jpg", cmyk, flags=("cmyk",))
    yield Animal("cmyk-plain.jpg", cmyk[:adobe] + cmyk[adobe + 16 :], flags=("cmyk",))
    yield Animal("ycck.jpg", patch(cmyk, adobe + 15, b"\x02"), flags=("cmyk",))
    yield Animal("cmyk.tif", encode(RGB.convert("CMYK"), "TIFF"), flags=("cmyk",))
    yield Animal("lab.tif", encode(RGB.convert("LAB"), "TIFF"), flags=("lab",))
    yield Animal("ycbcr.tif", encode(RGB, "TIFF", compression="jpeg"))
    yield Animal("bilevel.png", encode(RGB.convert("1"), "PNG"))
    yield Animal("bilevel.tif", encode(RGB.convert("1"), "TIFF", compression="group4"))
    yield Animal("palette.gif", encode(RGB.quantize(7), "GIF"))


def wide() -> Iterator[Animal]:
    grey = LEVELS[..., 0]
    rows = b"".join(b"\0" + row.tobytes() for row in (LEVELS * np.uint16(257)).astype(">u2"))
    alpha_rows = b"".join(
        b"\0" + row.tobytes() for row in (LEVELS[:, :20] * np.uint16(257)).astype(">u2")
    )
    floats = grey.astype(np.float32)
    with_nan, with_inf = floats.copy(), floats.copy()
    with_nan[3, 4], with_inf[3, 4] = np.nan, np.inf
    files = {
        "grey.png": encode(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        "rgb.png": png(SIDE_PX, SIDE_PX, bits=16, pixels=rows),
        "grey.tif": encode(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"),
        "grey-int32.tif": encode(Image.fromarray(grey.astype(np.int32) * 70_000), "TIFF"),
        "float-unit.tif": encode(Image.fromarray(floats / 255), "TIFF"),
        "float-wide.tif": encode(Image.fromarray(floats * 1e30 - 1e32), "TIFF"),
        "float-constant.tif": encode(Image.fromarray(floats * 0 + 7), "TIFF"),
    }
    for name, content in files.items():
        yield Animal(f"wide-{name}", content, flags=("16bit",))
    yield Animal(
        "wide-grey-alpha.png",
        png(30, SIDE_PX, bits=16, colour=4, pixels=alpha_rows),
        flags=("16bit", "alpha"),
    )
    for name, values in (("nan", with_nan), ("inf", with_inf)):
        content = encode(Image.fromarray(values), "TIFF")
        yield Animal(f"wide-{name}.tif", content, "decode_failed")


def transparent() -> Iterator[Animal]:
    rgba = RGB.copy()
    rgba.putalpha(Image.fromarray(LEVELS[..., 1]))
    opaque = RGB.copy()
    opaque.putalpha(255)
    palette = RGB.quantize(16)
    grey = Image.fromarray(LEVELS[..., 0])
    colour_key = tuple(int(level) for level in LEVELS[0, 0])
    grey_key = int(LEVELS[0, 0, 0])
    files = {
        "rgba.png": encode(rgba, "PNG"),
        "la.png": encode(rgba.convert("LA"), "PNG"),
        "palette-index.png": encode(palette, "PNG", transparency=palette.getpixel((0, 0))),
        "palette-table.png": encode(palette, "PNG", transparency=bytes(range(0, 160, 10))),
        "rgb-key.png": encode(RGB, "PNG", transparency=colour_key),
        "grey-key.png": encode(grey, "PNG", transparency=grey_key),
        "rgba.webp": encode(rgba, "WEBP", lossless=True),
        "rgba.tif": encode(rgba, "TIFF"),
        "palette.gif": encode(palette, "GIF", transparency=palette.getpixel((0, 0))),
    }
    for name, content in files.items():
        yield Animal(f"alpha-{name}", content, flags=("alpha",))
    wide = Image.fromarray(LEVELS[..., 0].astype(np.uint16) * 257)
    yield Animal(
        "alpha-grey16-key.png",
        encode(wide, "PNG", transparency=grey_key * 257),
        flags=("16bit", "alpha"),
    )
    for name in ("PNG", "WEBP", "TIFF"):
        yield Animal(f"opaque.{name.lower()}", encode(opaque, name))


def oriented() -> Iterator[Animal]:
    turned = ("exif_rotated",)
    for orientation in range(2, 9):
        yield Animal(
            f"turned-{orientation}.jpg", encode(RGB, "JPEG", exif=exif(orientation)), flags=turned
        )
    little = exif(6, order="<")
    yield Animal("turned-little.jpg", encode(RGB, "JPEG", exif=little), flags=turned)
    yield Animal("turned-long.jpg", encode(RGB, "JPEG", exif=exif(3, kind=4)), flags=turned)
    yield Animal("turned.png", encode(RGB, "PNG", exif=exif(6)), flags=turned)
    yield Animal("turned.webp", encode(RGB, "WEBP", exif=exif(6)), flags=turned)
    yield Animal("turned.tif", encode(RGB, "TIFF", tiffinfo={274: 6}), flags=turned)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    yield Animal("turned-xmp.jpg", encode(RGB, "JPEG", xmp=xmp), flags=turned)
    yield Animal("upright.jpg", encode(RGB, "JPEG", exif=exif(1)))
    yield Animal("unknown-orientation.jpg", encode(RGB, "JPEG", exif=exif(0)))

    bad = {
        "garbage": b"Exif\0\0" + b"\xde\xad\xbe\xef" * 8,
        "no-directory": b"Exif\0\0MM\0*\0\0\xff\xff",
        "cut": exif(6)[:20],
        "orientation-9": exif(9),
        "wrong-type": exif(6, kind=5),
        "only-name": b"Exif\0\0MM",
    }
    for name, block in bad.items():
        content = jpeg_with(jpeg_segment(0xE1, block))
        yield Animal(f"bad-exif-{name}.jpg", content, flags=("bad_exif",))
    yield Animal("bad-exif.png", png_with(png_chunk(b"eXIf", b"junk")), flags=("bad_exif",))


def sizes() -> Iterator[Animal]:
    for width, height in ((1, 1), (1, 20_000), (20_000, 1), (15, 15), (15, 4000)):
        image = RGB.resize((width, height))
        yield Animal(f"tiny-{width}x{height}.png", encode(image, "PNG"), flags=("tiny",))
    yield Animal("not-tiny.png", encode(RGB.resize((16, 16)), "PNG"))
    at_least = DecodePolicy(min_side_px=SIDE_PX + 1)
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        content = encode(RGB, name)
        yield Animal(f"too-small.{name.lower()}", content, "too_small", policy=at_least)
    enough = DecodePolicy(min_side_px=SIDE_PX)
    yield Animal("not-too-small.png", encode(RGB, "PNG"), policy=enough)


def metadata() -> Iterator[Animal]:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    bad_icc = ("bad_icc",)
    for name in ("JPEG", "PNG", "WEBP", "TIFF"):
        lower = name.lower()
        yield Animal(f"icc.{lower}", encode(RGB, name, icc_profile=srgb))
        yield Animal(f"icc-junk.{lower}", encode(RGB, name, icc_profile=b"junk" * 9), flags=bad_icc)
        cut = encode(RGB, name, icc_profile=srgb[:200])
        yield Animal(f"icc-cut.{lower}", cut, flags=bad_icc)
    grey_profile = srgb[:16] + b"GRAY" + srgb[20:]
    yield Animal("icc-other.png", encode(RGB, "PNG", icc_profile=grey_profile), flags=bad_icc)
    fragment = jpeg_segment(0xE2, b"ICC_PROFILE\0\x01\x03" + srgb)
    yield Animal("icc-lost-fragment.jpg", jpeg_with(fragment), flags=bad_icc)
    broken = png_chunk(b"iCCP", b"name\0\0not zlib")
    yield Animal("icc-broken-zlib.png", png_with(broken), flags=bad_icc)

    ignored = ("bad_metadata",)
    bomb = zlib.compress(bytes(100 << 20), 9)
    megabyte = zlib.compress(b"x" * ((1 << 20) - 1), 9)
    chunks = {
        "icc-method": png_chunk(b"iCCP", b"name\0\x07" + zlib.compress(srgb)),
        "icc-bomb": png_chunk(b"iCCP", b"name\0\0" + bomb),
        "text-bomb": png_chunk(b"zTXt", b"Comment\0\0" + bomb),
        "international-bomb": png_chunk(b"iTXt", b"Comment\0\x01\0en\0\0" + bomb),
        "text-sum": b"".join(
            png_chunk(b"zTXt", b"Comment%d\0\0" % number + megabyte) for number in range(70)
        ),
        "text-crc": png_chunk(b"tEXt", b"Comment\0hello")[:-1] + b"\0",
        "short-gamma": png_chunk(b"gAMA", b"\0"),
        "animation-sequence": png_chunk(b"fcTL", struct.pack(">I", 5) + bytes(22)),
    }
    for name, chunk in chunks.items():
        yield Animal(f"metadata-{name}.png", png_with(chunk), flags=ignored)
    injected = encode(RGB.quantize(16), "PNG")
    text = png_chunk(b"tEXt", b"transparency\0{{7*7}}")
    yield Animal("metadata-injected.png", injected[:33] + text + injected[33:], flags=ignored)
    yield Animal(
        "metadata-photoshop.jpg",
        jpeg_with(jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04")),
        flags=ignored,
    )
    huge = b"".join(jpeg_segment(0xE4, bytes(65_000)) for _ in range(100))
    yield Animal("huge-metadata.jpg", jpeg_with(huge))
    yield Animal("huge-comment.jpg", jpeg_with(jpeg_segment(0xFE, b"</script>" * 7000)))


def unsupported() -> Iterator[Animal]:
    jpeg, bmp = encode(RGB, "JPEG"), encode(RGB, "BMP")
    files = {
        "12-bit.jpg": patch(jpeg, jpeg_frame(jpeg) + 4, b"\x0c"),
        "2-layers.jpg": patch(jpeg, jpeg_frame(jpeg) + 9, b"\x02"),
        "depth.bmp": patch(bmp, 28, b"\x07"),
        "jpeg-inside.bmp": patch(bmp, 30, b"\x04"),
        "photometric.tif": tiff({262: (3, 32844)}),
        "64-bit.tif": tiff({258: (3, 64)}),
    }
    return (
        Animal(f"unsupported-{name}", content, "unsupported_mode")
        for name, content in files.items()
    )


def corrupt() -> Iterator[Animal]:
    jpeg, noise = encode(RGB, "JPEG"), LEVELS.tobytes()
    scan = jpeg_segment(0xDA, b"\x01\x01\0\0\x3f\0") + b"\0"
    lossy, gif = encode(RGB, "WEBP"), encode(RGB, "GIF")
    data = png_chunk(b"IDAT", noise[:500])
    header, end = encode(RGB, "PNG")[:33], png_chunk(b"IEND", b"")
    files = {
        "no-zlib.png": header + data + end,
        "no-data.png": header + end,
        "header-crc.png": patch(encode(RGB, "PNG"), 29, b"\0\0\0\0"),
        "zero-size.png": png(0, 0),
        "unknown-colour.png": png(8, 8, colour=5),
        "no-tables.jpg": b"\xff\xd8\xff" + jpeg[jpeg_frame(jpeg) + 1 :],
        "zero-height.jpg": patch(jpeg, jpeg_frame(jpeg) + 5, b"\0\0"),
        "many-scans.jpg": jpeg[:-2] + scan * 501 + b"\xff\xd9",
        "noise.webp": lossy[:30] + noise[: len(lossy) - 30],
        "zero-size.gif": patch(patch(gif, 6, bytes(4)), gif_frame(gif) + 5, bytes(4)),
        "header-type.bmp": patch(encode(RGB, "BMP"), 14, b"\x10"),
        "zero-size.bmp": patch(encode(RGB, "BMP"), 18, bytes(8)),
        "no-size.tif": tiff({256: (3, 0)}),
        "lzw-noise.tif": tiff({259: (3, 5)}, noise[:64]),
        "deflate-noise.tif": tiff({259: (3, 8)}, noise[:64]),
        "compression.tif": tiff({259: (3, 777)}),
    }
    codes = {"header-type.bmp": "unsupported_mode", "zero-size.gif": "too_small"}
    for name, content in files.items():
        yield Animal(f"corrupt-{name}", content, codes.get(name, "decode_failed"))
    yield Animal("corrupt-strips.tif", tiff({257: (3, 8000)}), "truncated")
    # A directory that names itself as the next page: a loop, read once.
    loop = tiff({})
    yield Animal("loop.tif", patch(loop, len(loop) - 68, struct.pack("<I", 8)), flags=("tiny",))
    flipped = bytearray(jpeg)
    flipped[len(jpeg) * 2 // 3] ^= 0x10
    yield Animal("flipped-but-decodes.jpg", bytes(flipped))
    yield Animal("trailing-junk.jpg", jpeg + b"junk" * 50)
    yield Animal("trailing-junk.png", encode(RGB, "PNG") + b"junk" * 50)
    yield Animal("trailing-junk.gif", gif + b"junk" * 50)
    yield Animal("wrong-suffix.png", jpeg)


def zoo() -> list[Animal]:
    """Every animal, each name once."""
    houses = (
        cut_files,
        not_images,
        other_formats,
        too_large,
        animated,
        colours,
        wide,
        transparent,
        oriented,
        sizes,
        metadata,
        unsupported,
        corrupt,
    )
    return [animal for house in houses for animal in house()]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for inhabitant in zoo():
        (folder / inhabitant.name).write_bytes(inhabitant.content)
