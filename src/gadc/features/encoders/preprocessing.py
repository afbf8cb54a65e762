"""From a decoded image to a network's input, pinned by numbers that go into the fingerprint."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gadc.errors import InputError
from gadc.images.decode import RESAMPLING, Resample, normalise, resize_and_crop, to_unit_range

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Resize, cut the central square, scale to [0, 1], normalise.

    Attributes:
        size_px: Length of the shorter side after scaling; a pair (height, width) scales to exactly
            that, whatever the proportions.
        crop_px: Side of the central square; None, with a pair, keeps everything.
        resample: The filter.
        mean: Per channel, of values in [0, 1].
        std: Per channel.
    """

    size_px: int | tuple[int, int]
    crop_px: int | None
    resample: Resample
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        sides = self.size_px if isinstance(self.size_px, tuple) else (self.size_px, self.size_px)
        crop = min(sides) if self.crop_px is None else self.crop_px
        if not 1 <= crop <= min(sides):
            raise InputError(
                "bad_preprocessing",
                f"a crop of {self.crop_px} pixels doesn't fit into a size of {self.size_px}",
            )
        if self.crop_px is None and not isinstance(self.size_px, tuple):
            raise InputError(
                "bad_preprocessing",
                "images of different proportions need a crop to become equal in size",
            )
        if self.resample not in RESAMPLING:
            raise InputError(
                "bad_preprocessing",
                f"resample {self.resample!r} is not one of {', '.join(RESAMPLING)}",
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(
                "bad_preprocessing",
                f"mean {self.mean} and std {self.std} must be three numbers each, std positive",
            )

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return float32 [3, height, width] of an RGB image."""
        if isinstance(self.size_px, tuple):
            height, width = self.size_px
            scaled = image.resize((width, height), RESAMPLING[self.resample])
            if self.crop_px is not None:
                left, top = round((width - self.crop_px) / 2), round((height - self.crop_px) / 2)
                scaled = scaled.crop((left, top, left + self.crop_px, top + self.crop_px))
        else:
            scaled = resize_and_crop(
                image,
                resize_px=self.size_px,
                crop_px=self.crop_px or self.size_px,
                resample=self.resample,
            )
        return normalise(to_unit_range(scaled), self.mean, self.std)

    def as_json(self) -> dict[str, Any]:
        """Return the numbers for a fingerprint."""
        return dataclasses.asdict(self)
