"""Pixels: closed forms, Pillow as oracle where it is right, and the shapes of what comes out."""

import io
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from bad_bytes import LEVELS, RGB, encode, encode_frames, exif, frames, patch, png, tiff
from gadc.errors import InputError
from gadc.images.decode import (
    DecodePolicy,
    ImageError,
    Resample,
    decode,
    normalise,
    resize_and_crop,
    to_unit_range,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY = Image.fromarray(LEVELS[..., 0])


def pixels(content: bytes, policy: DecodePolicy | None = None) -> NDArray[np.int16]:
    decoded = decode(content, policy) if policy else decode(content)
    return np.asarray(decoded.image).astype(np.int16)


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "TIFF"])
def test_lossless_rgb_comes_back_exactly(format_name: str) -> None:
    assert_array_equal(pixels(encode(RGB, format_name)), LEVELS)


def test_lossless_webp_comes_back_exactly() -> None:
    assert_array_equal(pixels(encode(RGB, "WEBP", lossless=True)), LEVELS)


def test_jpeg_equals_pillow() -> None:
    content = encode(RGB, "JPEG")
    assert_array_equal(pixels(content), np.asarray(Image.open(io.BytesIO(content))))


def test_decoding_from_many_threads_equals_decoding_from_one() -> None:
    contents = [encode(RGB, "JPEG", quality=quality, icc_profile=swapped()) for quality in (50, 90)]
    expected = [pixels(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(pixels, contents * 50))
    for number, result in enumerate(results):
        assert_array_equal(result, expected[number % 2])


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_equals_pillows_transposition(orientation: int, order: str) -> None:
    image = RGB.crop((0, 0, 40, 24))
    content = encode(image, "PNG", exif=exif(orientation, order=order))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert_array_equal(pixels(content), np.asarray(expected))


def test_orientation_6_turns_the_left_column_to_the_top_row() -> None:
    content = encode(RGB, "PNG", exif=exif(6))
    assert_array_equal(pixels(content)[0], LEVELS[::-1, 0])


def test_tiff_is_turned_once() -> None:
    content = encode(RGB, "TIFF", tiffinfo={274: 6})
    assert_array_equal(pixels(content)[0], LEVELS[::-1, 0])


def test_exif_goes_before_xmp() -> None:
    xmp = b'<rdf:Description tiff:Orientation="8"/>'
    upright = encode(RGB, "JPEG", exif=exif(3), xmp=xmp)
    assert_array_equal(pixels(upright), pixels(encode(RGB, "JPEG"))[::-1, ::-1])


# Wide greys


def test_sixteen_bits_are_divided_by_257_and_rounded() -> None:
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257)
    for content in (encode(Image.fromarray(values), name) for name in ("PNG", "TIFF")):
        for channel in range(3):
            assert_array_equal(pixels(content)[..., channel], expected)


def test_big_endian_sixteen_bits_equal_little_endian() -> None:
    values = (LEVELS[:8, :8, 0].astype(np.uint16) * 257) ^ 0x0102
    little = encode(Image.fromarray(values), "TIFF")
    big = big_endian_tiff(values)
    assert_array_equal(pixels(big), pixels(little))


def big_endian_tiff(values: NDArray[np.uint16]) -> bytes:
    height, width = values.shape
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 277: 1, 278: height}
    start = 8 + 2 + 12 * 9 + 4
    tags |= {273: start, 279: values.size * 2}
    directory = struct.pack(">H", len(tags))
    for tag, value in sorted(tags.items()):
        directory += struct.pack(">HHII", tag, 4, 1, value)
    return b"MM\0*" + struct.pack(">I", 8) + directory + bytes(4) + values.astype(">u2").tobytes()


def test_inverted_sixteen_bits_are_turned_back() -> None:
    values = np.linspace(0, 65_535, 64).astype("<u2")
    black_is_zero = tiff({258: (3, 16), 262: (3, 1)}, values.tobytes())
    white_is_zero = tiff({258: (3, 16), 262: (3, 0)}, values.tobytes())
    assert_array_equal(pixels(white_is_zero), 255 - pixels(black_is_zero))


def test_unit_floats_keep_their_range() -> None:
    values = np.array([[0.25, 0.5], [0.5, 0.75]], np.float32)
    expected = np.rint(values * 255)
    assert_array_equal(pixels(encode(Image.fromarray(values), "TIFF"))[..., 0], expected)


@pytest.mark.parametrize(("scale", "offset"), [(1, -7), (1e-3, 5), (1e36, 0), (300, 0)])
def test_other_floats_go_from_smallest_to_largest(scale: float, offset: float) -> None:
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16) * scale + offset
    expected = np.arange(256).reshape(16, 16)
    # Rounding in float32 before it is written; the offset costs digits.
    assert abs(pixels(encode(Image.fromarray(values), "TIFF"))[..., 0] - expected).max() <= 1


def test_constant_float_is_black() -> None:
    values = np.full((4, 4), 7, np.float32)
    assert pixels(encode(Image.fromarray(values), "TIFF")).max() == 0


def test_integers_within_16_bits_are_divided_by_257() -> None:
    values = (np.arange(256, dtype=np.int32) * 257).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    assert_array_equal(pixels(encode(Image.fromarray(values), "TIFF"))[..., 0], expected)


def test_integers_beyond_16_bits_go_from_smallest_to_largest() -> None:
    values = (np.arange(256, dtype=np.int32) * 1_000_000 - 500).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    assert_array_equal(pixels(encode(Image.fromarray(values), "TIFF"))[..., 0], expected)


def test_sixteen_bit_rgb_keeps_the_high_byte() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in (LEVELS * np.uint16(256) + 200).astype(">u2"))
    assert_array_equal(pixels(png(40, 40, bits=16, pixels=rows)), LEVELS)


# Transparency


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
def test_alpha_is_composited_on_the_background(background: tuple[int, int, int]) -> None:
    image = RGB.copy()
    alpha = LEVELS[..., 1]
    image.putalpha(Image.fromarray(alpha))
    weight = alpha[..., None] / 255
    expected = LEVELS * weight + np.array(background) * (1 - weight)
    result = pixels(encode(image, "PNG"), DecodePolicy(background=background))
    assert abs(result - expected).max() <= 0.51  # rounding, half of a level


def test_fully_transparent_pixels_show_only_the_background() -> None:
    image = RGB.copy()
    image.putalpha(0)
    assert_array_equal(pixels(encode(image, "PNG")), 255)


def test_opaque_alpha_changes_nothing_and_sets_no_flag() -> None:
    image = RGB.copy()
    image.putalpha(255)
    decoded = decode(encode(image, "PNG"))
    assert decoded.flags == ()
    assert_array_equal(np.asarray(decoded.image), LEVELS)


def test_colour_key_is_transparent_and_nothing_else() -> None:
    key = tuple(int(level) for level in LEVELS[3, 5])
    result = pixels(encode(RGB, "PNG", transparency=key))
    is_key = (key == LEVELS).all(axis=-1)
    assert is_key[3, 5]
    assert_array_equal(result, np.where(is_key[..., None], 255, LEVELS))


def test_sixteen_bit_grey_key_is_compared_before_scaling() -> None:
    values = np.array([[1000, 1001], [1001, 1000]], np.uint16)
    result = pixels(encode(Image.fromarray(values), "PNG", transparency=1000))[..., 0]
    assert_array_equal(result, [[255, 4], [4, 255]])


def test_palette_without_transparency_is_looked_up() -> None:
    palette = RGB.quantize(16)
    assert_array_equal(pixels(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))


# Colour spaces


def naive_rgb(cmyk: NDArray[np.uint8]) -> NDArray[np.float64]:
    ink = cmyk.astype(np.float64)
    return (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255


def flat_cmyk() -> Image.Image:
    blocks = np.zeros((32, 32, 4), np.uint8)
    blocks[:16, :16], blocks[:16, 16:] = (255, 0, 0, 0), (0, 255, 0, 40)
    blocks[16:, :16], blocks[16:, 16:] = (0, 0, 200, 0), (0, 0, 0, 0)
    return Image.fromarray(blocks, "CMYK")


def test_cmyk_tiff_is_converted_by_the_formula() -> None:
    expected = naive_rgb(np.asarray(flat_cmyk()))
    assert abs(pixels(encode(flat_cmyk(), "TIFF")) - expected).max() <= 1  # rounding twice


@pytest.mark.parametrize("has_adobe_marker", [True, False])
def test_inverted_cmyk_jpeg_has_the_colours_of_the_tiff(has_adobe_marker: bool) -> None:
    content = encode(flat_cmyk(), "JPEG", quality=100, subsampling=0)
    marker = content.index(b"\xff\xee")
    if not has_adobe_marker:
        content = content[:marker] + content[marker + 16 :]
    expected = naive_rgb(np.asarray(flat_cmyk()))
    assert abs(pixels(content) - expected).max() <= 4  # JPEG at its best quality


def test_neutral_lab_is_grey() -> None:
    lab = Image.merge("LAB", [GREY, *[Image.new("L", GREY.size, 128)] * 2])
    result = pixels(encode(lab, "TIFF"))
    assert np.ptp(result, axis=-1).max() <= 2  # the white points differ in the last digit
    brightness = result.mean(axis=-1)
    order = np.argsort(np.asarray(GREY).ravel(), kind="stable")
    assert np.diff(brightness.ravel()[order]).min() >= -1


# Profiles


def swapped() -> bytes:
    """An sRGB profile whose red and blue primaries have changed places."""
    red, blue = SRGB.index(b"rXYZ", 128), SRGB.index(b"bXYZ", 128)
    return patch(patch(SRGB, red, b"bXYZ"), blue, b"rXYZ")


def test_srgb_profile_changes_no_pixel() -> None:
    assert_array_equal(pixels(encode(RGB, "PNG", icc_profile=SRGB)), LEVELS)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_profile_is_applied(format_name: str) -> None:
    result = pixels(encode(RGB, format_name, icc_profile=swapped()))
    assert abs(result - LEVELS[..., ::-1]).max() <= 2  # 16-bit arithmetic of the profile


def test_profile_is_applied_below_transparency() -> None:
    red = Image.new("RGBA", (20, 20), (255, 0, 0, 255))
    red.putpixel((0, 0), (255, 0, 0, 0))
    result = pixels(encode(red, "PNG", icc_profile=swapped()))
    assert_array_equal(result[0, 0], (255, 255, 255))
    assert abs(result[1, 1] - (0, 0, 255)).max() <= 2


def test_colour_profile_on_grey_is_applied() -> None:
    assert decode(encode(GREY, "PNG", icc_profile=SRGB)).flags == ()
    assert_array_equal(pixels(encode(GREY, "PNG", icc_profile=SRGB))[..., 0], LEVELS[..., 0])


@pytest.mark.parametrize("profile", [b"junk" * 50, SRGB[:300], SRGB[:16] + b"CMYK" + SRGB[20:]])
def test_bad_profile_leaves_the_pixels(profile: bytes) -> None:
    decoded = decode(encode(RGB, "PNG", icc_profile=profile))
    assert decoded.flags == ("bad_icc",)
    assert_array_equal(np.asarray(decoded.image), LEVELS)


# Animation, policy, errors


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_first_frame_is_taken(format_name: str) -> None:
    assert_array_equal(pixels(encode_frames(format_name)), np.asarray(frames()[0]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_pixels": 0},
        {"min_side_px": 0},
        {"background": (0, 0, 256)},
        {"background": (0, 0)},
        {"animated": "last"},
        {"formats": ("JPEG", "FITS")},
    ],
)
def test_impossible_policy_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        DecodePolicy(**wrong)  # type: ignore[arg-type]
    assert caught.value.code == "bad_policy"


def test_image_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageError("truncated", "half of it")))
    assert (error.code, error.message) == ("truncated", "half of it")


# Geometry and range


SIZES = st.integers(1, 90)


def resize_then_crop(
    image: Image.Image, resize_px: int, crop_px: int, resample: str
) -> Image.Image:
    """The obvious way."""
    shorter = min(image.size)
    full_size = (resize_px * image.width // shorter, resize_px * image.height // shorter)
    full = image.resize(full_size, Image.Resampling[resample.upper()])
    left, top = (round((side - crop_px) / 2) for side in full_size)
    return full.crop((left, top, left + crop_px, top + crop_px))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SIZES, SIZES, st.integers(1, 50), st.integers(0, 49), st.sampled_from(["bicubic", "box"]))
def test_resize_and_crop_equals_full_resize_then_crop(
    width: int, height: int, resize_px: int, margin_px: int, resample: Resample
) -> None:
    image = Image.fromarray(np.resize(LEVELS, (height, width, 3)))
    crop_px = max(1, resize_px - margin_px)
    result = resize_and_crop(image, resize_px=resize_px, crop_px=crop_px, resample=resample)
    assert result.size == (crop_px, crop_px)
    if max(width, height) < 8 * min(width, height):
        expected = resize_then_crop(image, resize_px, crop_px, resample)
        assert_array_equal(np.asarray(result), np.asarray(expected))


@pytest.mark.parametrize("size", [(30, 400), (400, 30), (7, 399)])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
def test_strip_is_cropped_like_anything_else(size: tuple[int, int], resample: Resample) -> None:
    strip = RGB.resize(size, Image.Resampling.BICUBIC)
    result = resize_and_crop(strip, resize_px=24, crop_px=20, resample=resample)
    expected = resize_then_crop(strip, 24, 20, resample)
    difference = np.asarray(result).astype(np.int16) - np.asarray(expected)
    assert abs(difference).max() <= 2  # Pillow keeps the corners of the box in single precision


def test_resize_to_the_own_size_changes_nothing() -> None:
    assert_array_equal(np.asarray(resize_and_crop(RGB, resize_px=40, crop_px=40)), LEVELS)


def test_crop_takes_the_centre() -> None:
    result = resize_and_crop(RGB, resize_px=40, crop_px=20)
    assert_array_equal(np.asarray(result), LEVELS[10:30, 10:30])


def test_strip_is_cropped_without_being_blown_up() -> None:
    strip = RGB.resize((1, 20_000))
    assert resize_and_crop(strip, resize_px=512, crop_px=448).size == (448, 448)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"resize_px": 32, "crop_px": 33}, "bad_crop"),
        ({"resize_px": 32, "crop_px": 0}, "bad_crop"),
        ({"resize_px": 32, "crop_px": 32, "resample": "nearest"}, "unknown_resample"),
    ],
)
def test_impossible_crop_is_refused(options: dict[str, object], code: str) -> None:
    with pytest.raises(InputError) as caught:
        resize_and_crop(RGB, **options)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_unit_range_is_the_level_over_255_channels_first() -> None:
    result = to_unit_range(RGB)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert_array_equal(result, (LEVELS.astype(np.float32) / np.float32(255)).transpose(2, 0, 1))


def test_unit_range_refuses_other_modes() -> None:
    with pytest.raises(InputError, match="RGB"):
        to_unit_range(GREY)


def test_normalise_is_per_channel() -> None:
    image = np.ones((3, 2, 2), np.float32)
    result = normalise(image, (0, 0.5, 1), (1, 0.5, 0.25))
    assert result.dtype == np.float32
    assert_array_equal(result, np.broadcast_to([[[1]], [[1]], [[0]]], (3, 2, 2)))


@pytest.mark.parametrize(
    ("mean", "std"), [((0, 0), (1, 1, 1)), ((0, 0, np.nan), (1, 1, 1)), ((0, 0, 0), (1, 0, 1))]
)
def test_normalise_refuses_impossible_statistics(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        normalise(np.ones((3, 2, 2), np.float32), mean, std)
    assert caught.value.code == "bad_normalisation"
