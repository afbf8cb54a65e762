"""How much arithmetic a step takes, and how much of the device's it uses."""

import torch

from gadc.training.transformer import MLP_RATIO, PROJECTOR_WIDTH, TransformerShape

FLOPS_PER_PRODUCT = 2
"""A multiplication and an addition."""
PASSES_OF_TRAINING = 3
"""Backward takes twice forward."""
ADALN_PARTS, FINAL_PARTS = 6, 2

PEAK_FLOPS = {
    "H200": {"tf32": 495e12, "half": 989e12},
    "H100": {"tf32": 495e12, "half": 989e12},
    "A100": {"tf32": 156e12, "half": 312e12},
    "A800": {"tf32": 156e12, "half": 312e12},
    "L40S": {"tf32": 183e12, "half": 362e12},
    "4090": {"tf32": 82.6e12, "half": 165e12},
}
"""Dense tensor-core rates by part of the device's name, from the makers' data sheets (SXM)."""


def forward_flops(shape: TransformerShape) -> float:
    """Return the floating-point operations of one image's way through the network.

    Matrix products only, a multiplication and an addition each; embeddings are negligible.
    """
    n, width, depth = shape.n_tokens, shape.size.width, shape.size.depth
    attention = n * (3 + 1) * width**2 + 2 * n**2 * width  # q, k, v and output; scores and values
    mlp = n * 2 * MLP_RATIO * width**2
    modulation = ADALN_PARTS * width**2
    patch = shape.patch**2
    ends = n * patch * width * (shape.channels + shape.channels_out) + FINAL_PARTS * width**2
    text = shape.n_text_tokens * shape.text_width * width + (
        2 * width**2 if shape.text_width else 0
    )
    head = 0
    if shape.projection_width:
        widths = width + PROJECTOR_WIDTH + shape.projection_width
        head = n * PROJECTOR_WIDTH * widths
    return float(FLOPS_PER_PRODUCT * (depth * (attention + mlp + modulation) + ends + text + head))


def training_flops(shape: TransformerShape) -> float:
    """Return the operations of one image in one training step."""
    return PASSES_OF_TRAINING * forward_flops(shape)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return what a device can do per second at most; None where that is not known.

    Args:
        device: Where training runs.
        precision: `bf16` or `fp16`; anything else is float32, which tensor cores round to TF32.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    kind = "half" if precision in ("bf16", "fp16") else "tf32"
    return next((rates[kind] for part, rates in PEAK_FLOPS.items() if part in name), None)
