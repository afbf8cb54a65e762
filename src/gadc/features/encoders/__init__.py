"""Encoders by name: what turns an image into features, and into probabilities where it can."""

import importlib.util
from pathlib import Path

from gadc.errors import InputError
from gadc.features.encoders import huggingface, pixels, resnet_cifar, timm, torchvision
from gadc.features.encoders.base import Encoder, TorchEncoder
from gadc.features.encoders.pixels import PixelEncoder
from gadc.runtime import pick_device

__all__ = [
    "DEFAULT_ENCODER",
    "Encoder",
    "PixelEncoder",
    "TorchEncoder",
    "available_encoders",
    "load_encoder",
]

DEFAULT_ENCODER = huggingface.PREFIX + huggingface.DEFAULT_MODEL


def available_encoders() -> dict[str, str | None]:
    """Return every name that `load_encoder` takes, and what must be installed for it.

    Returns:
        By name, where `<...>` stands for a choice: None if it can be loaded, otherwise the command
        that installs what is missing.
    """
    needs = {
        pixels.NAME: None,
        resnet_cifar.NAME: None,
        huggingface.PREFIX + "<hub id or folder>": "transformers",
        **{torchvision.PREFIX + model: "torchvision" for model in torchvision.MODELS},
        timm.PREFIX + "<model>": "timm",
    }
    extras = {"transformers": "encoders", "torchvision": "torchvision", "timm": "timm"}
    return {
        name: None
        if library is None or importlib.util.find_spec(library)
        else f"pip install 'gadc[{extras[library]}]'"
        for name, library in needs.items()
    }


def load_encoder(
    name: str = DEFAULT_ENCODER, *, weights: Path | None = None, device: str = "auto"
) -> Encoder:
    """Load an encoder.

    Args:
        name: `pixels`, `cifar10-resnet56`, `transformers:<hub id or local folder>`,
            `torchvision:<model>` or `timm:<model>`.
        weights: A safetensors file, for `cifar10-resnet56` (needed), `torchvision:` and `timm:`
            (instead of a download).
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.

    Raises:
        InputError: `unknown_encoder`, or an encoder that can't be loaded.
        MissingExtraError: A library is not installed; the message names the extra.
    """
    where = pick_device(device)
    if name == resnet_cifar.NAME:
        return resnet_cifar.load_cifar_resnet(weights, where)
    if name.startswith(torchvision.PREFIX):
        return torchvision.load_torchvision(name, weights, where)
    if name.startswith(timm.PREFIX):
        return timm.load_timm(name, weights, where)
    if name != pixels.NAME and not name.startswith(huggingface.PREFIX):
        raise InputError(
            "unknown_encoder",
            f"encoder {name!r} is not known; valid are {', '.join(available_encoders())}",
        )
    if weights is not None:
        raise InputError("weights_not_used", f"encoder {name} takes no weights; leave them out")
    if name == pixels.NAME:
        return PixelEncoder()
    return huggingface.load_huggingface(name, where)
