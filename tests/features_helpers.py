"""Images, an image folder and an encoder that are small enough to run hundreds of times."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gadc.features.encoders import PixelEncoder

COLOURS = ("blue", "green", "red")
CHANNELS = {"red": 0, "green": 1, "blue": 2}


def write_images(root: Path, *, n_per_class: int = 6, side_px: int = 12) -> Path:
    """Write a class folder of noisy PNGs, one class per colour."""
    rng = np.random.default_rng(7)
    for colour in COLOURS:
        (root / colour).mkdir(parents=True, exist_ok=True)
        for number in range(n_per_class):
            pixels = rng.integers(0, 90, (side_px, side_px, 3), dtype=np.uint8)
            pixels[..., CHANNELS[colour]] += 120
            Image.fromarray(pixels).save(root / colour / f"{number:03d}.png")
    return root


def tiny_pixels() -> PixelEncoder:
    return as_on_gpu(PixelEncoder(side_px=4, n_components=5))


def as_on_gpu(encoder):
    """Let forward passes be what they are on a GPU: of `batch_size`, one after the other."""
    encoder.device = torch.device("cuda")
    return encoder


def colour_on_gpu() -> "ColourEncoder":
    return as_on_gpu(ColourEncoder())


class ColourEncoder:
    """Mean and spread per channel, and a head that knows the three colours."""

    name = "colour"
    n_components = None
    n_features = 6

    def __init__(self, class_names: list[str] | None = None, version: int = 1) -> None:
        self.class_names = list(CHANNELS) if class_names is None else class_names
        self.device = torch.device("cpu")
        self.version = version
        self.n_encoded = 0

    def fingerprint(self) -> dict[str, object]:
        return {"name": self.name, "version": self.version}

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.resize((8, 8)), dtype=np.float32)

    def encode(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.n_encoded += len(batch)
        means = batch.mean(axis=(1, 2))
        powers = np.exp((means - means.max(axis=1, keepdims=True)) / 50)
        features = np.concatenate([means, batch.std(axis=(1, 2))], axis=1) * self.version
        return features, (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Return the content of every visible file of a folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def photo(width=61, height=47, seed=0):
    """Return a smooth image, so that filters and crops show."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encode_one(encoder):
    features, probabilities = encoder.encode(encoder.preprocess(photo())[None])
    return features[0], None if probabilities is None else probabilities[0]
