"""Inputs of the transformer for all training images, made once and kept."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import RunError
from gadc.runtime import ProgressStyle, progress
from gadc.storage import digest
from gadc.training.images import TrainingImages
from gadc.training.spaces import LARGEST_LEVEL, DiffusionSpace, LatentSpace, to_signed
from gadc.training.tensor_files import load_tensors, save_tensors

logger = logging.getLogger(__name__)

DIGEST_LENGTH = 16
"""Of the names of files: several subsets and VAEs can share a folder."""
IMAGES_AT_A_TIME = 16
"""Encoded together; at 512 px the VAE's activations of more don't fit into 16 GB."""
DEVICE_SHARE = 0.25
"""Inputs stay on a GPU if they take at most this part of its memory."""


@dataclass(eq=False)
class TrainingInputs:
    """Clean inputs by image and orientation.

    Attributes:
        mean: Levels of pixels, uint8 [n, 3, side, side]; or means of latents, float32
            [n, 1 or 2, c, side, side], the second orientation mirrored.
        std: Standard deviations of the latents, like `mean`; None for pixels.
    """

    mean: torch.Tensor
    std: torch.Tensor | None

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.mean)

    def to(self, device: torch.device) -> None:
        """Move everything to a GPU, if it takes little of its memory."""
        if device.type != "cuda":
            return
        parts = [part for part in (self.mean, self.std) if part is not None]
        n_bytes = sum(part.numel() * part.element_size() for part in parts)
        if n_bytes > DEVICE_SHARE * torch.cuda.get_device_properties(device).total_memory:
            return
        self.mean = self.mean.to(device)
        self.std = None if self.std is None else self.std.to(device)

    def gather(
        self,
        rows: NDArray[np.int64],
        flips: NDArray[np.bool_],
        posterior: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        """Return clean inputs, float32 [b, c, side, side].

        Args:
            rows: Which images, [b].
            flips: Which of them mirrored, [b].
            posterior: Noise for the latents, [b, c, side, side] on `device`; None for pixels.
            device: Where the result goes.
        """
        home = self.mean.device
        places = torch.from_numpy(rows).to(home)
        orientations = torch.from_numpy(flips.astype(np.int64)).to(home)
        if self.std is None or posterior is None:
            levels = self.mean[places].to(device).float() * (2 / LARGEST_LEVEL) - 1
            mirrored = torch.from_numpy(flips).to(device)[:, None, None, None]
            return torch.where(mirrored, levels.flip(3), levels)
        mean = self.mean[places, orientations].to(device)
        return mean + self.std[places, orientations].to(device) * posterior


def training_inputs(
    images: TrainingImages,
    space: DiffusionSpace,
    *,
    resolution_px: int,
    both: bool,
    cache: Path,
    show: ProgressStyle = "silent",
) -> TrainingInputs:
    """Make the inputs of all images, or find the latents of an earlier run on disk.

    Latents of mirrored images are encoded, since a VAE doesn't commute with mirroring. Pixels are
    kept as levels, in memory, and mirrored when they are used.

    Args:
        images: Which.
        space: What becomes of them.
        resolution_px: Side of the images.
        both: Whether images are also shown mirrored.
        cache: Existing folder for the latents; may be shared by runs.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: An image is gone, not the one that was selected, or can't be decoded.
        RunError: The disk is full.
    """
    if not isinstance(space, LatentSpace):
        return TrainingInputs(_all_pixels(images, resolution_px, show), None)
    wanted = digest([images.fingerprint, space.fingerprint, both])
    path = cache / f"latents-{wanted[:DIGEST_LENGTH]}.safetensors"
    found = _cached(path, wanted)
    if found is None:
        found = _encoded(images, space, resolution_px, both=both, show=show)
        save_tensors(path, found, {"images": wanted})
    return TrainingInputs(found["mean"], found["std"])


def _all_pixels(images: TrainingImages, resolution_px: int, show: ProgressStyle) -> torch.Tensor:
    pixels = torch.empty(images.n_images, 3, resolution_px, resolution_px, dtype=torch.uint8)
    with progress("read images", images.n_images, style=show) as bar:
        for start, block in images.batches(IMAGES_AT_A_TIME, resolution_px=resolution_px):
            pixels[start : start + len(block)] = torch.from_numpy(block)
            bar.advance(len(block))
    return pixels


def _cached(path: Path, wanted: str) -> dict[str, torch.Tensor] | None:
    """Return latents from disk if they are whole and those of these images."""
    if not path.is_file():
        return None
    try:
        tensors, metadata = load_tensors(path)
    except RunError as error:
        logger.warning("%s; the images are encoded again", error)
        return None
    if metadata.get("images") != wanted:
        logger.warning("%s is of other images; they are encoded again", path)
        return None
    return tensors


def _encoded(
    images: TrainingImages,
    space: LatentSpace,
    resolution_px: int,
    *,
    both: bool,
    show: ProgressStyle,
) -> dict[str, torch.Tensor]:
    """Return mean and std, float32 [n, 1 or 2, c, side, side]."""
    shape = (images.n_images, 1 + both, space.channels, space.side, space.side)
    mean, std = torch.empty(shape), torch.empty(shape)
    with progress("encode images", images.n_images, style=show) as bar:
        for start, block in images.batches(IMAGES_AT_A_TIME, resolution_px=resolution_px):
            pixels = to_signed(block)
            for orientation in range(1 + both):
                shown = pixels.flip(3) if orientation else pixels
                found_mean, found_std = space.posterior(shown)
                mean[start : start + len(block), orientation] = found_mean.cpu()
                std[start : start + len(block), orientation] = found_std.cpu()
            bar.advance(len(block))
    return {"mean": mean, "std": std}
