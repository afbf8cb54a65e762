"""Small images, subsets and settings for tests that train."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gadc.training.conditions import Conditions
from gadc.training.config import TrainConfig
from gadc.training.images import TrainingImages, images_of_subset
from subset_factory import folder_subset

SIDE_PX = 8
N_CLASSES, N_PER_CLASS = 3, 4


def write_images(root: Path, *, side_px: int = SIDE_PX, n_classes: int = N_CLASSES) -> Path:
    """Write pictures that differ left from right, a folder per class."""
    rng = np.random.default_rng(0)
    for label in range(n_classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(N_PER_CLASS):
            levels = rng.integers(0, 256, (side_px, side_px, 3)).astype(np.uint8)
            levels[:, : side_px // 2, label % 3] //= 4
            Image.fromarray(levels).save(folder / f"{number}.png")
    return root


def tiny_images(root: Path, **options: Any) -> TrainingImages:
    subset, index = folder_subset(write_images(root, **options))
    return images_of_subset(subset, index)


def tiny_config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "model": "SiT-T/4",
        "space": "pixel",
        "vae": None,
        "resolution_px": SIDE_PX,
        "steps": 4,
        "batch_size": 6,
        "learning_rate": 1e-3,
        "ema_decays": (0.9, 0.5),
        "log_every": 2,
        "checkpoint_every": 2,
    }
    return TrainConfig(**{**settings, **changes})


def tiny_conditions(images: TrainingImages, *, n_tokens: int, mirrored: bool = True) -> Conditions:
    """Return random texts (one a class, of 2 to 4 tokens) and visual targets."""
    source = torch.Generator().manual_seed(5)
    text = torch.randn(len(images.class_names), 4, 6, generator=source)
    text[0, 2:] = 0.0
    visual = torch.randn(images.n_images, 1 + mirrored, n_tokens, 5, generator=source)
    labels = torch.from_numpy(np.asarray(images.labels))
    return Conditions(list(images.ids), text, labels, visual, {"made": "by a test"})


def save_tiny_vae(folder: Path) -> Path:
    """Save an untrained VAE that shrinks images by 2."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(3)
        vae = AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            latent_channels=4,
            sample_size=16,
        )
    vae.save_pretrained(folder)
    return folder
