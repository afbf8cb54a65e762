"""The pixels themselves: an encoder without a network, for a first look and for tests."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gadc.errors import InputError

NAME = "pixels"
SIDE_PX = 32
N_COMPONENTS = 64


class PixelEncoder:
    """All images scaled to one small size, as a row of numbers, then principal components.

    `encode` returns the rows, uint8 [b, side_px * side_px * 3]; that the features are their
    projection on the leading principal components of the data set is `gadc.features.components`.
    Images are scaled to a square whatever their proportions: smoothed where they shrink, bicubic
    where they grow.

    Args:
        side_px: Side of the square.
        n_components: The most components kept.

    Raises:
        InputError: `side_px` or `n_components` below 1.
    """

    name = NAME
    class_names = None

    def __init__(self, side_px: int = SIDE_PX, n_components: int = N_COMPONENTS) -> None:
        if side_px < 1 or n_components < 1:
            raise InputError(
                "bad_encoder",
                f"side_px {side_px} and n_components {n_components} must be at least 1",
            )
        self.device = torch.device("cpu")
        self.side_px = side_px
        self.n_components = n_components

    @property
    def n_features(self) -> int:
        """The most features there can be."""
        return min(self.n_components, 3 * self.side_px**2)

    def fingerprint(self) -> dict[str, Any]:
        """Return name and settings."""
        return {
            "name": self.name,
            "weights_sha256": None,
            "preprocessing": {"side_px": self.side_px, "resample": "bicubic"},
            "n_components": self.n_components,
        }

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return uint8 [side_px * side_px * 3]."""
        scaled = image.resize((self.side_px, self.side_px), Image.Resampling.BICUBIC)
        return np.asarray(scaled, dtype=np.uint8).reshape(-1)

    def encode(self, batch: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], None]:
        """Return the rows as they are."""
        return batch, None
