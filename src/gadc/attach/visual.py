"""Patch tokens of a vision encoder, at the grid of a diffusion transformer.

A transformer on images of r pixels has one token for each square of `token_px` (VAE factor times
patch: 16 for the published models), so a grid of r / 16. The encoder is given the image at the size
at which its own patches form that grid: 14 pixels a patch make 224 of 256 and 448 of 512, as REPA.

Source:
    Yu et al., Representation alignment for generation: training diffusion transformers is easier
    than you think, 2025, section 4 and appendix C.
"""

import inspect
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gadc.errors import InputError
from gadc.features.encoders.base import exact_convolutions
from gadc.features.encoders.huggingface import PREFIX, HuggingFaceEncoder, load_huggingface
from gadc.images.decode import MOST_PIXELS_PER_SIDE, RESAMPLING, normalise, to_unit_range

DEFAULT_MODEL = "facebook/dinov2-base"
TOKEN_PX = 16
"""Pixels of an image below one token: 8 of the VAE times a patch of 2."""
N_ORIENTATIONS = 2
"""As the image is, and mirrored."""


class PatchEncoder:
    """Gives the tokens of an image's patches, row by row, and of its mirror image.

    Args:
        encoder: A vision transformer and its preprocessing; only the filter, mean and standard
            deviation of that are used.
        image_size_px: Side of the square that training cuts from an image.
        token_px: Side of the square below one token of the diffusion transformer.

    Raises:
        InputError: `patch_grid`: sizes that don't fit; `unsupported_encoder`: an encoder without
            patches.
    """

    class_names = None
    n_components = None

    def __init__(
        self, encoder: HuggingFaceEncoder, *, image_size_px: int, token_px: int = TOKEN_PX
    ) -> None:
        if (
            token_px < 1
            or not token_px <= image_size_px <= MOST_PIXELS_PER_SIDE
            or image_size_px % token_px
        ):
            raise InputError(
                "patch_grid",
                f"image_size_px={image_size_px} must be a multiple of token_px={token_px}, the "
                f"pixels below one token of the model, and at most {MOST_PIXELS_PER_SIDE}",
            )
        config: Any = encoder.backbone.config
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int):
            raise InputError(
                "unsupported_encoder",
                f"encoder {encoder.name} has no square patches; use a vision transformer",
            )
        self.name = encoder.name
        self.device = encoder.device
        self.grid_side = image_size_px // token_px
        self.input_px = self.grid_side * patch
        self._encoder, self._config = encoder, config
        self.image_size_px, self._token_px = image_size_px, token_px
        # Others than DINO take images of one size, unless they are asked to interpolate.
        parameters = inspect.signature(encoder.backbone.forward).parameters
        can_be_asked = "interpolate_pos_encoding" in parameters
        self._options = {"interpolate_pos_encoding": True} if can_be_asked else {}

    @property
    def n_tokens(self) -> int:
        """Number of patches, and so of targets, of an image."""
        return self.grid_side**2

    @property
    def n_features(self) -> int:
        """Length of a token."""
        return int(self._config.hidden_size)

    def fingerprint(self) -> dict[str, Any]:
        """Return all that targets depend on besides the image."""
        of_encoder = self._encoder.fingerprint()
        preprocessing = self._encoder.preprocessing
        return {
            **{key: of_encoder[key] for key in ("name", "weights_sha256", "transformers")},
            "feature": "patch tokens of the last layer",
            "image_size_px": self.image_size_px,
            "token_px": self._token_px,
            "grid_side": self.grid_side,
            "input_px": self.input_px,
            "resample": preprocessing.resample,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        }

    def orientations(self, square: Image.Image, *, mirrored: bool) -> NDArray[np.float32]:
        """Return the encoder's inputs for an image as training shows it.

        Args:
            square: RGB, `image_size_px` on either side.
            mirrored: Also the mirror image.

        Returns:
            Float32 [1 or 2, 3, input_px, input_px].
        """
        shown = [square, ImageOps.mirror(square)] if mirrored else [square]
        return np.stack([self.preprocess(image) for image in shown])

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """Return float32 [3, input_px, input_px]."""
        preprocessing = self._encoder.preprocessing
        scaled = image.resize((self.input_px, self.input_px), RESAMPLING[preprocessing.resample])
        return normalise(to_unit_range(scaled), preprocessing.mean, preprocessing.std)

    def encode(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], None]:
        """Return tokens [b, n_tokens, width] of inputs [b, 3, input_px, input_px].

        Raises:
            InputError: `unsupported_encoder`: the encoder's tokens don't form the grid.
        """
        with torch.inference_mode(), exact_convolutions(self.device):
            pixels = torch.from_numpy(batch).to(self.device)
            output = self._encoder.backbone(pixel_values=pixels, **self._options)
            hidden = output.last_hidden_state
            n_others = hidden.shape[1] - self.n_tokens if hidden.ndim == 3 else -1
            # Class and register tokens stand before the patches.
            if not 0 <= n_others <= 1 + self._n_registers:
                raise InputError(
                    "unsupported_encoder",
                    f"encoder {self.name} gives an output of shape {list(hidden.shape)} for "
                    f"{self.n_tokens} patches; use a vision transformer",
                )
            return hidden[:, n_others:].float().cpu().numpy(), None

    @property
    def _n_registers(self) -> int:
        return int(getattr(self._config, "num_register_tokens", 0) or 0)


def load_patch_encoder(
    name: str = DEFAULT_MODEL,
    *,
    device: torch.device,
    image_size_px: int,
    token_px: int = TOKEN_PX,
) -> PatchEncoder:
    """Load a vision transformer of the Hugging Face hub, or of a local folder.

    Args:
        name: Hub id or folder, with or without the prefix `transformers:`.
        device: Where to compute.
        image_size_px: See `PatchEncoder`.
        token_px: See there.

    Raises:
        MissingExtraError: transformers is not installed.
        InputError: No such model, weights missing, or one without patches.
    """
    encoder = load_huggingface(PREFIX + name.removeprefix(PREFIX), device)
    return PatchEncoder(encoder, image_size_px=image_size_px, token_px=token_px)
