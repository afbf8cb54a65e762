"""Any image model of timm: an extra, because it needs torchvision."""

import difflib
import math
from pathlib import Path
from typing import Any

import torch

from gadc.errors import InputError, MissingExtraError
from gadc.features.encoders.base import TorchEncoder, load_weights
from gadc.features.encoders.preprocessing import Preprocessing
from gadc.images.decode import Resample

PREFIX = "timm:"
FILTERS: dict[str, Resample] = {
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "lanczos": "lanczos",
    "box": "box",
}
CENTER_CROP, SQUASH = "center", "squash"


class TimmEncoder(TorchEncoder):
    """The pooled features before the classifier, and its probabilities."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return features [b, d], and logits [b, c] of a model with a classifier."""
        model: Any = self.model
        hidden = model.forward_features(pixels)
        features = model.forward_head(hidden, pre_logits=True)
        logits = model.forward_head(hidden) if model.num_classes else None
        return features, logits


def load_timm(name: str, weights: Path | None, device: torch.device) -> TimmEncoder:
    """Load `timm:<model>`.

    Args:
        name: With its prefix.
        weights: A safetensors file of the model's state dict; None downloads the pretrained ones.
        device: Where to compute.

    Raises:
        MissingExtraError: timm is not installed.
        InputError: No such model, weights that can't be had, or an unsupported preprocessing.
    """
    model_name = name.removeprefix(PREFIX)
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            "missing_extra", f"encoder {name} needs timm: pip install 'gadc[timm]'"
        ) from error
    if not timm.is_model(model_name):
        near = ", ".join(difflib.get_close_matches(model_name, timm.list_models()))
        raise InputError(
            "unknown_encoder",
            f"timm has no model {model_name!r}; near it: {near or 'none'}; see timm.list_models()",
        )
    try:
        # timm prefers safetensors and reads anything else with weights_only=True.
        model = timm.create_model(model_name, pretrained=weights is None)
    except (OSError, RuntimeError) as error:
        raise InputError("unreadable_weights", f"can't load {name}: {error}") from error
    if weights is not None:
        load_weights(model, weights)
    return TimmEncoder(
        name,
        model,
        _data_preprocessing(timm.data.resolve_model_data_config(model), name),
        device=device,
        class_names=_class_names(timm, model),
        settings={"feature": "pre_logits", "timm": timm.__version__},
    )


def _class_names(timm: Any, model: Any) -> list[str] | None:
    """Return the ImageNet descriptions of the classifier's columns, if timm knows them."""
    if not model.num_classes:
        return None
    subset = timm.data.infer_imagenet_subset(model)
    if not subset:
        return None
    return [str(text) for text in timm.data.ImageNetInfo(subset).label_descriptions()]


def _data_preprocessing(config: dict[str, Any], name: str) -> Preprocessing:
    """Turn timm's data configuration into gadc's preprocessing."""
    n_channels, height, width = config["input_size"]
    if n_channels != 3 or height != width or config["crop_mode"] not in (CENTER_CROP, SQUASH):
        raise InputError(
            "bad_preprocessing",
            f"encoder {name} takes {config['input_size']} with crop mode {config['crop_mode']!r}; "
            "supported are square RGB inputs, cropped in the centre or squashed",
        )
    if config["interpolation"] not in FILTERS:
        raise InputError(
            "bad_preprocessing",
            f"encoder {name} resamples by {config['interpolation']!r}; "
            f"supported are {', '.join(FILTERS)}",
        )
    scaled_px = math.floor(height / config["crop_pct"])
    return Preprocessing(
        size_px=(scaled_px, scaled_px) if config["crop_mode"] == SQUASH else scaled_px,
        crop_px=height,
        resample=FILTERS[config["interpolation"]],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
