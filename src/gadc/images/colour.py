"""Any pixel format to 8-bit sRGB: grey of 16 bits, floats, CMYK, LAB, palettes, alpha, profiles."""

import functools
import io
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from gadc.images.faults import ImageError

UINT16_MAX = 65535
MODE_OF_PROFILE = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK", b"Lab ": "LAB"}
WIDE_MODES = frozenset(["I", "F", "I;16", "I;16B", "I;16L", "I;16N"])
PLAIN_MODE = {
    "1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB",
    "RGBX": "RGB", "RGBA": "RGBA", "RGBa": "RGBA", "YCbCr": "RGB", "CMYK": "CMYK", "LAB": "LAB",
}  # fmt: skip
"""What each mode becomes, without loss, before profile and background."""

BAND_PIXELS = 1 << 20
"""Wide pixels are scaled a band at a time: 89 million floats at once would take gigabytes."""
PROBE_LEVELS = 9
IDENTITY_TOLERANCE = 1
"""Levels by which a profile may differ from sRGB and still be sRGB, rounded."""


def to_srgb(
    image: Image.Image,
    *,
    background: tuple[int, int, int],
    grey_max: int = UINT16_MAX,
    white_is_zero: bool = False,
) -> tuple[Image.Image, Collection[str]]:
    """Convert a loaded image to mode RGB.

    Args:
        image: Loaded, in any mode that Pillow produces from a file.
        background: What shows through transparent pixels.
        grey_max: The largest value a 16-bit grey pixel can take.
        white_is_zero: Grey of 16 bits or more is stored inverted.

    Returns:
        The image, and the flags of what was done: `16bit`, `alpha`, `cmyk`, `lab`, `bad_icc`.

    Raises:
        ImageError: `unsupported_mode`, or `decode_failed` for NaN.
    """
    flags = set()
    if image.mode in WIDE_MODES:
        flags.add("16bit")
        image = _narrow(image, grey_max, white_is_zero=white_is_zero)
    else:
        image = _plain(image)
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colours = image.convert(image.mode[:-1]) if alpha is not None else image
    if colours.mode in ("CMYK", "LAB"):
        flags.add(colours.mode.lower())
    rgb, profile_was_good = _apply_profile(colours)
    if not profile_was_good:
        flags.add("bad_icc")
    if alpha is not None:
        opaque = alpha.getextrema() == (255, 255)
        if not opaque:
            flags.add("alpha")
            canvas = Image.new("RGB", rgb.size, background)
            canvas.paste(rgb, mask=alpha)
            rgb = canvas
    return rgb, flags


def _plain(image: Image.Image) -> Image.Image:
    """Return the image in mode L, LA, RGB, RGBA, CMYK or LAB."""
    if image.mode not in PLAIN_MODE:
        raise ImageError("unsupported_mode", f"pixels of kind {image.mode!r} can't be converted")
    target = PLAIN_MODE[image.mode]
    if "transparency" in image.info and target in ("L", "RGB"):
        target = "RGBA" if target == "RGB" else "LA"
    return image if image.mode == target else image.convert(target)


def _narrow(image: Image.Image, grey_max: int, *, white_is_zero: bool) -> Image.Image:
    """Scale grey of 16 or 32 bits to 8 by its range; `convert` would clip at 255 instead.

    16 bits: 0 to `grey_max` (65,535 unless the file says less). Integers of 32 bits: the same if
    all fit, else smallest to largest. Floats: 0 to 1 if all lie there, else smallest to largest.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())  # NaN if any value is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("decode_failed", "a pixel is NaN or infinite")
    levels = np.empty(values.shape, np.uint8)
    n_rows = max(1, BAND_PIXELS // image.width)
    bands = [slice(start, start + n_rows) for start in range(0, image.height, n_rows)]
    if image.mode == "F" or low < 0 or high > UINT16_MAX:
        if image.mode == "F" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        for band in bands:
            levels[band] = _between(values[band].astype(np.float64), low, high)
    else:
        table = np.minimum(np.rint(np.arange(UINT16_MAX + 1) * (255 / grey_max)), 255)
        for band in bands:
            levels[band] = table[values[band]]
    grey = Image.fromarray(255 - levels if white_is_zero else levels)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray((values != key).astype(np.uint8) * np.uint8(255)))
    if "icc_profile" in image.info:
        grey.info["icc_profile"] = image.info["icc_profile"]
    return grey


def _between(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Map `low` to 0 and `high` to 255; a constant image is black."""
    if high <= low:
        return np.zeros_like(values)
    return np.rint((values - low) * (255 / (high - low)))


def _apply_profile(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return the image in sRGB, and whether its profile (if any) could be used.

    A profile that is broken or made for other colours is ignored.
    """
    profile = image.info.get("icc_profile", b"")
    is_good = isinstance(profile, bytes)
    if is_good and profile:
        mode = MODE_OF_PROFILE.get(profile[16:20])
        source = image.convert("RGB") if (image.mode, mode) == ("L", "RGB") else image
        try:
            if mode != source.mode:
                raise ImageCms.PyCMSError("the profile is for other colours than the image's")
            transform = _transform_to_srgb(profile, mode)
            return (source if transform is None else transform.apply(source)), True
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            is_good = False
    if image.mode == "LAB":
        return _lab_to_srgb().apply(image), is_good
    return (image if image.mode == "RGB" else image.convert("RGB")), is_good


@functools.lru_cache(maxsize=16)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the conversion from an ICC profile; None where the profile is sRGB itself."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB"
    )
    if mode != "RGB":
        return transform
    levels = np.linspace(0, 255, PROBE_LEVELS).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    change = np.asarray(transform.apply(Image.fromarray(grid))).astype(np.int16) - grid
    return None if np.abs(change).max() <= IDENTITY_TOLERANCE else transform


@functools.cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )
