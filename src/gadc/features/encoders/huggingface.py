"""Vision models of the Hugging Face hub, or of a local folder, through `transformers`."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from gadc.errors import InputError, MissingExtraError
from gadc.features.encoders.base import OutputTap, TorchEncoder
from gadc.features.encoders.preprocessing import Preprocessing
from gadc.images.decode import Resample

PREFIX = "transformers:"
DEFAULT_MODEL = "facebook/dinov2-base"
CLASSIFIER_SUFFIX = "ForImageClassification"
PILLOW_FILTERS: dict[int, Resample] = {1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}
"""Pillow's numbers, which is what `preprocessor_config.json` holds."""
FIRST_TOKEN = "first token"
POOLED = "pooler output, or first token without a pooler"
RESCALE_FACTOR = 1 / 255
CONVNEXT_SQUASH_PX = 384
"""From this size on, ConvNeXt's processor scales to a square and doesn't crop."""


class HuggingFaceEncoder(TorchEncoder):
    """The pooled output of a vision model, or its class token where nothing is pooled.

    The feature is `pooler_output` of the backbone (for DINOv2 the normalised class token, for
    convolutional networks the average pool). Where the backbone has no trained pooler, it is the
    first token of `last_hidden_state`. Two-tower models (CLIP, SigLIP) give their image tower.

    Attributes:
        backbone: The part that gives features, without a classifier's head.
    """

    def __init__(self, name: str, model: Any, preprocessing: Preprocessing, **options: Any) -> None:
        super().__init__(name, model, preprocessing, **options)
        self.backbone = _backbone(model)
        self._is_classifier = _is_classifier(model)
        self._tap = OutputTap(self.backbone)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return features [b, d], and logits [b, c] of a classification model."""
        whole = self.model if self._is_classifier else self.backbone
        logits = getattr(whole(pixel_values=pixels), "logits", None)
        return self._feature(self._tap.take()), logits

    def _feature(self, output: Any) -> torch.Tensor:
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and self._settings["feature"] != FIRST_TOKEN:
            return torch.flatten(pooled, 1)
        hidden = output.last_hidden_state
        # A map [b, d, h, w] has no class token; its mean is what classifiers pool.
        first_token: torch.Tensor = hidden.mean(dim=(2, 3)) if hidden.ndim == 4 else hidden[:, 0]
        return first_token


def _is_classifier(model: torch.nn.Module) -> bool:
    return CLASSIFIER_SUFFIX in type(model).__name__


def _backbone(model: Any) -> torch.nn.Module:
    """Return the part that gives features."""
    backbone = model.base_model if _is_classifier(model) else model
    backbone = getattr(model, "vision_model", backbone)
    if backbone is model and _is_classifier(model):
        raise InputError(
            "unsupported_encoder", f"{type(model).__name__} doesn't tell which part gives features"
        )
    part: torch.nn.Module = backbone
    return part


def load_huggingface(name: str, device: torch.device) -> HuggingFaceEncoder:
    """Load `transformers:<hub id or local folder>`.

    Only safetensors weights are read, and no code of the repository is run. The environment
    variable `HF_HUB_OFFLINE=1` keeps to what is already on this machine.

    Args:
        name: With its prefix.
        device: Where to compute.

    Raises:
        MissingExtraError: `transformers` is not installed.
        InputError: No such model, no safetensors weights, weights missing from the checkpoint, or
            a preprocessing that gadc doesn't know.
    """
    source = name.removeprefix(PREFIX)
    try:
        import transformers
        from transformers.image_processing_base import ImageProcessingMixin
    except ImportError as error:
        raise MissingExtraError(
            "missing_extra", f"encoder {name} needs transformers: pip install 'gadc[encoders]'"
        ) from error
    with _as_input_errors(name):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        processor, _ = ImageProcessingMixin.get_image_processor_dict(source)
    architecture = (config.architectures or [""])[0]
    is_classifier = CLASSIFIER_SUFFIX in architecture and hasattr(transformers, architecture)
    model_class = getattr(transformers, architecture) if is_classifier else transformers.AutoModel
    with _as_input_errors(name):
        model, report = model_class.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    # Classifiers are saved without the pooler that `AutoModel` then adds with random weights.
    untrained = [key for key in report["missing_keys"] if "pooler" not in key]
    if untrained or report["mismatched_keys"]:
        raise InputError(
            "incomplete_weights",
            f"encoder {name}: the checkpoint lacks weights of {type(model).__name__}: "
            f"{', '.join(untrained[:5]) or 'shapes differ'}",
        )
    class_names = None
    if is_classifier and getattr(config, "problem_type", None) in (
        None,
        "single_label_classification",
    ):
        class_names = [str(config.id2label[label]) for label in range(config.num_labels)]
    return HuggingFaceEncoder(
        name,
        model,
        read_preprocessing(processor, name),
        device=device,
        class_names=class_names,
        settings={
            "architecture": type(model).__name__,
            "feature": FIRST_TOKEN if report["missing_keys"] else POOLED,
            "transformers": transformers.__version__,
        },
    )


@contextlib.contextmanager
def _as_input_errors(name: str) -> Iterator[None]:
    """Turn the library's many ways of saying "not found" into one."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise InputError(
            "unreadable_encoder",
            f"encoder {name} can't be loaded: {error}. Give a hub id or a folder with config.json, "
            "preprocessor_config.json and model.safetensors; pickled weights are not read",
        ) from error


def read_preprocessing(processor: dict[str, Any], name: str) -> Preprocessing:
    """Turn the contents of `preprocessor_config.json` into gadc's own preprocessing.

    The library's processors are not used: which implementation runs, and so the features, depends
    on whether torchvision happens to be installed. The numbers in the file are the model's; the
    arithmetic is `gadc.images.decode`'s everywhere.

    Args:
        processor: The file's contents.
        name: The encoder, for errors.

    Raises:
        InputError: Something in it that gadc doesn't do.
    """
    is_normalised = processor.get("do_normalize", True)
    needed = ["size", "resample"] + (["image_mean", "image_std"] if is_normalised else [])
    if missing := [key for key in needed if processor.get(key) is None]:
        raise InputError(
            "bad_preprocessing",
            f"encoder {name}: preprocessor_config.json lacks {', '.join(missing)}; add what the "
            "model was trained with",
        )
    if processor.get("do_pad") or "longest_edge" in _as_dict(processor["size"]):
        raise InputError(
            "bad_preprocessing", f"encoder {name} pads or limits the longer side; not supported"
        )
    if processor.get("do_resize") is False:
        raise InputError(
            "bad_preprocessing", f"encoder {name} doesn't resize; images must become equal in size"
        )
    factor = processor.get("rescale_factor", RESCALE_FACTOR)
    if processor.get("do_rescale", True) is False or abs(factor - RESCALE_FACTOR) > 1e-6:
        raise InputError(
            "bad_preprocessing", f"encoder {name} rescales by {factor}; only 1/255 is supported"
        )
    filter_number = int(processor["resample"])
    if filter_number not in PILLOW_FILTERS:
        raise InputError(
            "bad_preprocessing",
            f"encoder {name} resamples by Pillow's filter {filter_number}; "
            f"supported are {', '.join(PILLOW_FILTERS.values())}",
        )
    size_px, crop_px = _sizes(processor)
    return Preprocessing(
        size_px=size_px,
        crop_px=crop_px,
        resample=PILLOW_FILTERS[filter_number],
        mean=tuple(processor["image_mean"]) if is_normalised else (0, 0, 0),
        std=tuple(processor["image_std"]) if is_normalised else (1, 1, 1),
    )


def _as_dict(size: Any) -> dict[str, int]:
    return size if isinstance(size, dict) else {}


def _sizes(processor: dict[str, Any]) -> tuple[int | tuple[int, int], int | None]:
    """Return size and crop as `Preprocessing` takes them."""
    size, crop = processor["size"], processor.get("crop_size")
    shortest = size if isinstance(size, int) else size.get("shortest_edge")
    if shortest is not None and processor.get("crop_pct"):  # ConvNeXt and the hub's ResNets
        if shortest >= CONVNEXT_SQUASH_PX:
            return (shortest, shortest), None
        return int(shortest / processor["crop_pct"]), shortest
    crop_px = crop if isinstance(crop, int) or crop is None else min(crop["height"], crop["width"])
    if processor.get("do_center_crop") is False:
        crop_px = None
    if isinstance(size, dict) and shortest is None:
        return (size["height"], size["width"]), crop_px
    if isinstance(size, int) and crop_px is None:
        return (size, size), None
    return shortest, crop_px or shortest
