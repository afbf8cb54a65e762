"""The paper's backbones, from torchvision: an extra, because the core never imports it."""

from pathlib import Path
from typing import Any

import torch

from gadc.errors import InputError, MissingExtraError
from gadc.features.encoders.base import OutputTap, TorchEncoder, load_weights
from gadc.features.encoders.preprocessing import Preprocessing
from gadc.images.decode import Resample

PREFIX = "torchvision:"
MODELS = ("inception_v3", "resnet50", "resnet34", "googlenet")
TRAINED_ON_SIGNED_RANGE = frozenset(["inception_v3", "googlenet"])
FILTERS: dict[str, Resample] = {
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "lanczos": "lanczos",
    "box": "box",
}


class TorchvisionEncoder(TorchEncoder):
    """The average pool before the classifier, and the classifier's probabilities.

    Both come from one forward pass over one input, normalised as the weights were trained.
    """

    def __init__(self, name: str, model: Any, preprocessing: Preprocessing, **options: Any) -> None:
        super().__init__(name, model, preprocessing, **options)
        self._pool = OutputTap(model.avgpool)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [b, d] and logits [b, 1000]."""
        logits = self.model(pixels)
        return torch.flatten(self._pool.take(), 1), logits


def load_torchvision(name: str, weights: Path | None, device: torch.device) -> TorchvisionEncoder:
    """Load `torchvision:<model>` with torchvision's default weights, or the same from a file.

    Args:
        name: With its prefix; one of `MODELS`.
        weights: A safetensors file of the model's state dict; None downloads it.
        device: Where to compute.

    Raises:
        MissingExtraError: torchvision is not installed.
        InputError: Another model, or weights that can't be had.
    """
    model_name = name.removeprefix(PREFIX)
    if model_name not in MODELS:
        valid = ", ".join(PREFIX + model for model in MODELS)
        raise InputError("unknown_encoder", f"encoder {name!r} is not known; valid are {valid}")
    try:
        import torchvision
    except ImportError as error:
        raise MissingExtraError(
            "missing_extra",
            f"encoder {name} needs torchvision: pip install 'gadc[torchvision]'",
        ) from error
    chosen = torchvision.models.get_model_weights(model_name).DEFAULT
    # Built without weights, then filled: torchvision's own builder would unpickle the download.
    options: dict[str, Any] = {}
    if model_name in TRAINED_ON_SIGNED_RANGE:
        # These two were trained on inputs in [-1, 1]. With transform_input the model converts the
        # ImageNet normalisation of its preset to that range, as torchvision does for pretrained
        # weights; without it features and probabilities come from the wrong range.
        options = {"transform_input": True, "init_weights": False, "aux_logits": True}
    model = torchvision.models.get_model(model_name, weights=None, **options)
    if weights is not None:
        load_weights(model, weights)
    else:
        try:
            state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                "unreadable_weights",
                f"can't download the weights of {name}: {error}; give weights=FILE.safetensors",
            ) from error
        model.load_state_dict(state)
    return TorchvisionEncoder(
        name,
        model,
        _preset_preprocessing(chosen.transforms()),
        device=device,
        class_names=list(chosen.meta["categories"]),
        settings={
            "weights": str(chosen),
            "feature": "avgpool",
            "torchvision": torchvision.__version__,
        },
    )


def _preset_preprocessing(preset: Any) -> Preprocessing:
    """Turn the weights' own preset into gadc's preprocessing."""
    filter_name = preset.interpolation.value
    if filter_name not in FILTERS:
        raise InputError(
            "bad_preprocessing",
            f"the preset resamples by {filter_name}; supported are {', '.join(FILTERS)}",
        )
    return Preprocessing(
        size_px=preset.resize_size[0],
        crop_px=preset.crop_size[0],
        resample=FILTERS[filter_name],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
