"""Where diffusion takes place: in the pixels, or in the latents of a VAE."""

import hashlib
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import InputError, MissingExtraError, RunError
from gadc.storage import digest
from gadc.training.config import TrainConfig

PIXEL_CHANNELS = 3
LARGEST_LEVEL = 255


class DiffusionSpace(Protocol):
    """What the transformer sees instead of an image.

    Attributes:
        channels: Of its input.
        side: Height and width of its input.
        is_bounded: Whether clean inputs lie in [-1, 1].
        fingerprint: Digest of what makes the inputs out of images.
    """

    channels: int
    side: int
    is_bounded: bool
    fingerprint: str

    def to_images(self, x: torch.Tensor) -> NDArray[np.uint8]:
        """Return images [b, height, width, 3] for inputs [b, channels, side, side]."""


class PixelSpace:
    """Images themselves, scaled to [-1, 1]."""

    channels = PIXEL_CHANNELS
    is_bounded = True

    def __init__(self, resolution_px: int) -> None:
        self.side = resolution_px
        self.fingerprint = digest(["pixel", resolution_px])

    def to_images(self, x: torch.Tensor) -> NDArray[np.uint8]:
        """See `DiffusionSpace`."""
        return levels(x)


class LatentSpace:
    """Latents of a diffusers `AutoencoderKL`, shifted and scaled as its configuration says."""

    is_bounded = False

    def __init__(self, vae: Any, resolution_px: int, *, fingerprint: str) -> None:
        config = vae.config
        self.vae = vae
        self.channels = int(config.latent_channels)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)
        self.scale = float(config.scaling_factor)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        if resolution_px % self.factor:
            raise InputError(
                "patch_grid",
                f"resolution_px={resolution_px} must be a multiple of {self.factor}, by which the "
                "VAE shrinks images",
            )
        self.side = resolution_px // self.factor
        self.fingerprint = digest(["latent", resolution_px, fingerprint])

    @property
    def device(self) -> torch.device:
        """Where the VAE is."""
        device: torch.device = next(self.vae.parameters()).device
        return device

    @torch.inference_mode()
    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the latents, float32 [b, channels, side, side].

        Args:
            pixels: [b, 3, height, width] in [-1, 1].
        """
        found = self.vae.encode(pixels.to(self.device)).latent_dist
        return (found.mean - self.shift) * self.scale, found.std * self.scale

    @torch.inference_mode()
    def to_images(self, x: torch.Tensor) -> NDArray[np.uint8]:
        """See `DiffusionSpace`."""
        decoded = self.vae.decode(x.to(self.device).float() / self.scale + self.shift)
        return levels(decoded.sample)


def levels(pixels: torch.Tensor) -> NDArray[np.uint8]:
    """Round pixels [b, 3, h, w] in [-1, 1] to levels 0 to 255, [b, h, w, 3]; others are cut off.

    Raises:
        RunError: `samples_not_finite`: some are no numbers, which would become black.
    """
    n_bad = int((~torch.isfinite(pixels).flatten(1).all(1)).sum())
    if n_bad:
        raise RunError(
            "samples_not_finite",
            f"{n_bad} of {len(pixels)} images hold NaN or infinity; use precision 'no' instead of "
            "fp16, or a lower cfg_scale",
        )
    scaled = (pixels.float() + 1) * (LARGEST_LEVEL / 2)
    rounded = scaled.round().clamp(0, LARGEST_LEVEL).to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).cpu().contiguous().numpy()


def to_signed(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return levels 0 to 255 as float32 from -1 to 1."""
    return torch.from_numpy(pixels).float() * (2 / LARGEST_LEVEL) - 1


def open_space(config: TrainConfig, device: torch.device) -> DiffusionSpace:
    """Return the space a configuration asks for.

    Raises:
        MissingExtraError: diffusers is not installed.
        InputError: `unreadable_vae`, there is no such VAE, or it is not in safetensors;
            `patch_grid`.
    """
    if config.space == "pixel":
        return PixelSpace(config.resolution_px)
    vae, fingerprint = _load_vae(str(config.vae))
    return LatentSpace(
        vae.to(device).eval().requires_grad_(False), config.resolution_px, fingerprint=fingerprint
    )


def _load_vae(name: str) -> tuple[Any, str]:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise MissingExtraError(
            "missing_extra", "latents need diffusers: pip install 'gadc[train]', or train in pixels"
        ) from error
    try:
        vae, report = AutoencoderKL.from_pretrained(
            name, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(
            "unreadable_vae",
            f"VAE {name} can't be loaded: {reason} Give a hub id, which needs the network "
            "once, or a folder with config.json and "
            "diffusion_pytorch_model.safetensors; pickled weights are not read",
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        raise InputError(
            "unreadable_vae", f"VAE {name} lacks weights: {', '.join(report['missing_keys'][:5])}"
        )
    return vae, _weights_digest(vae)


def _weights_digest(vae: Any) -> str:
    """Return the digest of a VAE's weights and scale: its name may come to mean other weights."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        sha256.update(name.encode())
        sha256.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    sha256.update(repr((vae.config.scaling_factor, vae.config.shift_factor)).encode())
    return sha256.hexdigest()
