"""Noise that belongs to an image, not to a batch."""

from collections.abc import Sequence

import numpy as np
import torch

from gadc.runtime import generator


class ImageNoise:
    """One generator for each image: what image i draws depends on the seed and i alone.

    Args:
        seed: The user's.
        numbers: Which images make up the batch.
        shape: Of one image's noise.
        device: Where noise is needed; it is drawn on the CPU, so that all devices see the same.
    """

    def __init__(
        self,
        seed: int,
        numbers: Sequence[int],
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
    ) -> None:
        self._generators = [generator(seed, "image", number) for number in numbers]
        self._shape, self._device = shape, device

    def normal(self) -> torch.Tensor:
        """Draw standard normal noise for all images, float32 [b, *shape]."""
        drawn = [
            source.standard_normal(self._shape, dtype=np.float32) for source in self._generators
        ]
        return torch.from_numpy(np.stack(drawn)).to(self._device)

    def choices(self, counts: Sequence[int]) -> list[int]:
        """Draw a number below each of `counts`, for the image it belongs to."""
        pairs = zip(self._generators, counts, strict=True)
        return [int(source.integers(count)) for source, count in pairs]
