"""The ResNet for CIFAR of He et al. 2016, section 4.2, with shortcuts of option A.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016, arXiv:1512.03385.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from gadc.errors import InputError
from gadc.features.encoders.base import TorchEncoder, load_weights
from gadc.features.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

NAME = "cifar10-resnet56"
CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
WIDTHS = (16, 32, 64)
N_BLOCKS = 9
"""Per stage; 6 N_BLOCKS + 2 = 56 layers."""
SIDE_PX = 32


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut without parameters.

    Where the block halves the resolution, the shortcut takes every second pixel and fills the new
    channels with zeros, half before and half after the old ones (option A).
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.stride = 1 if n_in == n_out else 2
        self.n_padded = (n_out - n_in) // 2
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [b, n_out, h / stride, w / stride]."""
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.n_padded:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.n_padded, self.n_padded))
        return functional.relu(residual + shortcut)


class CifarResNet56(nn.Module):
    """The network, from pixels to features and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0])
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1])
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2])
        self.linear = nn.Linear(WIDTHS[2], len(CLASS_NAMES))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [b, 64] and logits [b, 10] of pixels [b, 3, 32, 32]."""
        x = functional.relu(self.bn1(self.conv1(pixels)))  # [b, 16, 32, 32]
        x = self.layer3(self.layer2(self.layer1(x)))  # [b, 64, 8, 8]
        features = x.mean(dim=(2, 3))  # [b, 64]
        return features, self.linear(features)


def _stage(n_in: int, n_out: int) -> nn.Sequential:
    first = ResidualBlock(n_in, n_out)
    return nn.Sequential(first, *[ResidualBlock(n_out, n_out) for _ in range(N_BLOCKS - 1)])


class CifarResNetEncoder(TorchEncoder):
    """Average-pooled features [64] and the probabilities of CIFAR-10's classes."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [b, 64] and logits [b, 10]."""
        features, logits = self.model(pixels)
        return features, logits


def load_cifar_resnet(weights: Path | None, device: torch.device) -> CifarResNetEncoder:
    """Build the encoder from a state dict.

    Args:
        weights: A safetensors file with the keys `conv1, bn1,
            layer{1,2,3}.{0..8}.{conv1,bn1,conv2,bn2}, linear`.
        device: Where to compute.

    Raises:
        InputError: No weights, or those of another network.
    """
    if weights is None:
        raise InputError(
            "weights_needed", f"encoder {NAME} has no download; give weights=FILE.safetensors"
        )
    model = CifarResNet56()
    load_weights(model, weights)
    preprocessing = Preprocessing(
        size_px=SIDE_PX,
        crop_px=SIDE_PX,
        resample="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return CifarResNetEncoder(
        NAME,
        model,
        preprocessing,
        device=device,
        class_names=list(CLASS_NAMES),
        settings={"feature": "average pool"},
    )
