"""The only place where bytes become pixels and pixels change range."""

import collections
import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from gadc.errors import InputError
from gadc.images.colour import UINT16_MAX, to_srgb
from gadc.images.faults import FaultCode, ImageError
from gadc.images.orientation import TRANSPOSITIONS, read_orientation
from gadc.images.structure import (
    READABLE_FORMATS,
    FormatName,
    canvas_size,
    identify,
    is_whole,
    n_jpeg_scans,
    without_metadata,
)

__all__ = [
    "DecodePolicy",
    "DecodedImage",
    "FaultCode",
    "ImageError",
    "Resample",
    "decode",
    "normalise",
    "resize_and_crop",
    "to_unit_range",
]

AnimatedChoice = Literal["first", "skip"]
Resample = Literal["bilinear", "bicubic", "lanczos", "box"]

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
TINY_SIDE_PX = 16
"""Below this shorter side an image is flagged: no encoder sees more than a blur in it."""
MOST_PIXELS_PER_SIDE = 8192
"""Nothing is scaled to more: such an image takes 200 MB, and no model sees it."""
MAX_FULL_ASPECT = 8
"""Longer images are cropped before they are scaled; see `resize_and_crop`."""
MAX_JPEG_SCANS = 500
"""Encoders write about ten; thousands of scans keep a decoder busy for hours."""

# Called directly, not through `Image.open`: its size check only warns, at a limit that is global
# to the process, and it would try other formats.
READERS: dict[FormatName, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}
READER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    RuntimeError,
    Warning,
    struct.error,
    zlib.error,
)
"""Everything that Pillow's readers have been seen to raise on a broken file."""
UNSUPPORTED = re.compile(r"cannot handle|unknown pixel mode|data organization|unsupported", re.I)
CUT_UNNOTICED = frozenset(["PNG", "WEBP", "GIF", "TIFF"])
"""Formats whose readers return what there is of a cut file."""
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_ORIENTATION = 258, 262, 274
TIFF_WHITE_IS_ZERO = 0
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH = 322, 323
PNG_BITS_OFFSET = 24


@dataclass(frozen=True)
class DecodePolicy:
    """What is accepted as an image, and how it becomes RGB.

    Attributes:
        max_pixels: Larger images are refused before a pixel is decoded.
        min_side_px: Images with a shorter side below are refused.
        background: RGB colour that shows through transparent pixels.
        animated: What becomes of files with several frames or pages: their first, or nothing.
        formats: What may be read at all, by content; the file's suffix doesn't matter.
    """

    max_pixels: int = 89_000_000
    min_side_px: int = 1
    background: tuple[int, int, int] = (255, 255, 255)
    animated: AnimatedChoice = "first"
    formats: tuple[FormatName, ...] = READABLE_FORMATS

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or self.min_side_px < 1:
            raise InputError(
                "bad_policy",
                f"max_pixels {self.max_pixels} and min_side_px {self.min_side_px} must be >= 1",
            )
        if len(self.background) != 3 or not all(0 <= level <= 255 for level in self.background):
            raise InputError(
                "bad_policy", f"background {self.background} must be three levels from 0 to 255"
            )
        if self.animated not in get_args(AnimatedChoice):
            raise InputError("bad_policy", f"animated={self.animated!r} is not first or skip")
        if unknown := set(self.formats) - set(READABLE_FORMATS):
            raise InputError(
                "bad_policy",
                f"formats {sorted(unknown)} can't be read; valid: {', '.join(READABLE_FORMATS)}",
            )


@dataclass(frozen=True)
class DecodedImage:
    """Pixels, and what had to be done or ignored to get them.

    Attributes:
        image: Mode RGB, upright, sRGB, without metadata.
        flags: In alphabetical order, from `16bit` (more than 8 bits a channel, scaled by range),
            `alpha` (composited on the background), `animated` (first frame of several),
            `bad_exif`, `bad_icc`, `bad_metadata` (broken, so ignored), `cmyk`, `exif_rotated`,
            `lab`, `tiny` (shorter side below 16 pixels).
    """

    image: Image.Image
    flags: tuple[str, ...]


DEFAULT_POLICY = DecodePolicy()


def decode(content: bytes, policy: DecodePolicy = DEFAULT_POLICY) -> DecodedImage:
    """Decode a whole image file, every pixel of it.

    Args:
        content: The file's bytes.
        policy: Limits and choices.

    Raises:
        ImageError: The image can't be used; the code says why.
    """
    name = _allowed_format(content, policy)
    try:
        return _decode_as(name, content, policy)
    except READER_ERRORS as error:
        stripped = without_metadata(name, content) if is_whole(name, content) else None
        if stripped is None:
            raise _fault(name, content, error) from error
    try:
        decoded = _decode_as(name, stripped, policy)
    except READER_ERRORS as error:
        raise _fault(name, content, error) from error
    return DecodedImage(decoded.image, tuple(sorted({*decoded.flags, "bad_metadata"})))


def _allowed_format(content: bytes, policy: DecodePolicy) -> FormatName:
    found = identify(content)
    if found is None:
        what = f"starts with {content[:12]!r}" if content else "is empty"
        raise ImageError("not_an_image", f"the file {what}; no image format does")
    for name in policy.formats:
        if name == found:
            return name
    raise ImageError(
        "format_not_allowed", f"format {found} is not one of {', '.join(policy.formats)}"
    )


def _decode_as(name: FormatName, content: bytes, policy: DecodePolicy) -> DecodedImage:
    image = _open(name, content, policy)
    flags = set()
    if getattr(image, "is_animated", False):
        if policy.animated == "skip":
            raise ImageError("animated", "several frames or pages, and animated is set to skip")
        flags.add("animated")
    grey_max, white_is_zero = UINT16_MAX, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tiff_flags, grey_max, white_is_zero = _read_tiff_tags(image, policy)
        flags.update(tiff_flags)
    image.load()
    if name == "PNG" and content[PNG_BITS_OFFSET] > 8:
        flags.add("16bit")
    orientation = 1
    if name in ("JPEG", "PNG", "WEBP"):
        try:
            orientation = read_orientation(image.info)
        except ValueError:
            flags.add("bad_exif")

    rgb, colour_flags = to_srgb(
        image, background=policy.background, grey_max=grey_max, white_is_zero=white_is_zero
    )
    flags.update(colour_flags)
    if orientation in TRANSPOSITIONS:
        flags.add("exif_rotated")
        rgb = rgb.transpose(TRANSPOSITIONS[orientation])
    if min(rgb.size) < TINY_SIDE_PX:
        flags.add("tiny")
    if rgb is image:
        rgb = image.copy()  # lets go of the file's bytes
    rgb.info.clear()
    return DecodedImage(rgb, tuple(sorted(flags)))


def _open(name: FormatName, content: bytes, policy: DecodePolicy) -> ImageFile.ImageFile:
    """Read the headers, and refuse what must not be decoded."""
    if name in CUT_UNNOTICED and not is_whole(name, content):
        raise ImageError("truncated", f"the {name} file ends before its data do")
    if size := canvas_size(name, content):
        _check_size(size, policy)
    if name == "JPEG" and n_jpeg_scans(content) > MAX_JPEG_SCANS:
        raise ImageError("decode_failed", f"a JPEG of more than {MAX_JPEG_SCANS} scans")
    try:
        image = READERS[name](io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    _check_size(image.size, policy)
    return image


def _read_tiff_tags(
    image: TiffImagePlugin.TiffImageFile, policy: DecodePolicy
) -> tuple[set[str], int, bool]:
    """Return flags, the largest value of a 16-bit grey pixel, and whether white is zero."""
    tags = image.tag_v2
    covered: collections.Counter[object] = collections.Counter()
    for tile in image.tile:
        left, top, right, bottom = tile.extents or (0, 0, 0, 0)
        covered[tile.args] += (right - left) * (bottom - top)
    if min(covered.values(), default=0) < image.width * image.height:
        raise ImageError("truncated", "the strips or tiles do not cover the image")
    tile_pixels = tags.get(TIFF_TILE_WIDTH, 1) * tags.get(TIFF_TILE_LENGTH, 1)
    if tile_pixels > policy.max_pixels:
        raise ImageError(
            "too_large", f"tiles of {tile_pixels} pixels; max_pixels is {policy.max_pixels}"
        )
    flags = set()
    n_bits = max(tags.get(TIFF_BITS, (1,)))
    if n_bits > 8:
        flags.add("16bit")
    if tags.get(TIFF_ORIENTATION) in TRANSPOSITIONS:
        flags.add("exif_rotated")  # by Pillow, while loading
    return flags, 2 ** min(n_bits, 16) - 1, tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO


def _check_size(size: tuple[int, int], policy: DecodePolicy) -> None:
    width, height = size
    if width * height > policy.max_pixels:
        raise ImageError(
            "too_large",
            f"{width} x {height} pixels are more than {policy.max_pixels}; raise max_pixels",
        )
    if min(size) < policy.min_side_px:
        raise ImageError(
            "too_small", f"{width} x {height} pixels: a side is below {policy.min_side_px}"
        )


def _fault(name: FormatName, content: bytes, error: Exception) -> ImageError:
    """Find the code for an error of Pillow's."""
    text = f"{name}: {error or type(error).__name__}"
    if "truncated" in text.lower() or not is_whole(name, content):
        return ImageError("truncated", text)
    if UNSUPPORTED.search(text):
        return ImageError("unsupported_mode", text)
    return ImageError("decode_failed", text)


def resize_and_crop(
    image: Image.Image, *, resize_px: int, crop_px: int, resample: Resample = "bicubic"
) -> Image.Image:
    """Scale the shorter side to `resize_px` and cut out the central square of `crop_px`.

    Of an image more than `MAX_FULL_ASPECT` times as long as wide, only what survives the crop is
    computed: scaling a 1 x 20,000 strip to 448 pixels would need nine million rows.

    Args:
        image: Any size, mode RGB.
        resize_px: Length of the shorter side after scaling; the longer one is rounded down.
        crop_px: Side of the result, at most `resize_px`.
        resample: The filter; all of them smooth when they shrink.

    Returns:
        A `crop_px` × `crop_px` image.

    Raises:
        InputError: Sizes that can't be met, or an unknown filter.
    """
    if not 1 <= crop_px <= resize_px:
        raise InputError(
            "bad_crop", f"crop_px is {crop_px}; it must lie between 1 and resize_px, {resize_px}"
        )
    if resample not in RESAMPLING:
        raise InputError(
            "unknown_resample", f"resample {resample!r} is not one of {', '.join(RESAMPLING)}"
        )
    width, height = image.size
    if width <= height:
        scaled_width, scaled_height = resize_px, resize_px * height // width
    else:
        scaled_width, scaled_height = resize_px * width // height, resize_px
    left = round((scaled_width - crop_px) / 2)
    top = round((scaled_height - crop_px) / 2)
    if max(scaled_width, scaled_height) <= MAX_FULL_ASPECT * resize_px:
        scaled = image.resize((scaled_width, scaled_height), RESAMPLING[resample])
        return scaled.crop((left, top, left + crop_px, top + crop_px))
    box = (
        left * width / scaled_width,
        top * height / scaled_height,
        (left + crop_px) * width / scaled_width,
        (top + crop_px) * height / scaled_height,
    )
    return image.resize((crop_px, crop_px), RESAMPLING[resample], box=box)


def to_unit_range(image: Image.Image) -> NDArray[np.float32]:
    """Turn an RGB image into numbers from 0 to 1.

    Returns:
        Float32 [3, height, width].

    Raises:
        InputError: The image is not in mode RGB.
    """
    if image.mode != "RGB":
        raise InputError("bad_mode", f"image mode is {image.mode}, not RGB; use decode() first")
    pixels = np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)  # [3, h, w]
    return np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(255)


def normalise(pixels: NDArray[np.float32], mean: ArrayLike, std: ArrayLike) -> NDArray[np.float32]:
    """Subtract `mean` and divide by `std`, channel by channel.

    Args:
        pixels: Float32 [3, height, width] from `to_unit_range`.
        mean: Three numbers.
        std: Three positive numbers.

    Returns:
        Float32 [3, height, width].

    Raises:
        InputError: `mean` or `std` are not three finite numbers, or `std` is not positive.
    """
    centre = np.asarray(mean, dtype=np.float32)
    spread = np.asarray(std, dtype=np.float32)
    for name, values in (("mean", centre), ("std", spread)):
        if values.shape != (3,) or not np.isfinite(values).all():
            raise InputError("bad_normalisation", f"{name} must be 3 finite numbers, not {values}")
    if (spread <= 0).any():
        raise InputError("bad_normalisation", f"std must be positive, not {spread}")
    return (pixels - centre[:, None, None]) / spread[:, None, None]
