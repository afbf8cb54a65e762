"""A small network that is trained to tell the classes apart, and then judges by what it sees.

For images too small or too odd for a published encoder. It is trained on the pool, with its own
seed, and no method selects by it.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from gadc.errors import InputError, RunError
from gadc.features.encoders.base import TorchEncoder
from gadc.features.encoders.preprocessing import Preprocessing
from gadc.forks import on_cores
from gadc.images.decode import decode, resize_and_crop
from gadc.images.faults import ImageError, bad_image
from gadc.images.source import ImageIndex
from gadc.runtime import generator
from gadc.training.tensor_files import load_tensors, save_tensors

logger = logging.getLogger(__name__)

NAME = "classifier"
WIDTHS = (32, 64)
N_FEATURES = 32
"""Few enough that a few hundred images have a covariance of full rank."""
N_EPOCHS, BATCH_SIZE, LEARNING_RATE = 25, 64, 2e-3
SEED = 0
LEAST_SPREAD = 1e-6
"""Of a feature that is the same for all images."""
MAX_IMAGES = 100_000
"""They are held in memory; whoever has more has a published encoder."""
CENTRE = (0.5, 0.5, 0.5)
"""Mean and deviation that bring pixels to [-1, 1]."""


class SmallNetwork(nn.Module):
    """Two convolutions, pooled, and a layer of features before the classes.

    The features are given in units of their deviation over the pool, so that distances and kernels
    don't depend on how large the network happened to make them.
    """

    centre: torch.Tensor
    spread: torch.Tensor

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.second = nn.Conv2d(WIDTHS[0], WIDTHS[1], 3, padding=1, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.features = nn.Linear(WIDTHS[1] * 16, N_FEATURES)
        self.head = nn.Linear(N_FEATURES, n_classes)
        self.register_buffer("centre", torch.zeros(N_FEATURES))
        self.register_buffer("spread", torch.ones(N_FEATURES))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [b, d] and logits [b, c] of pixels [b, 3, h, w] in [-1, 1]."""
        x = functional.relu(self.second(functional.relu(self.first(pixels))))
        features = self.features(self.pool(x).flatten(1))
        return (features - self.centre) / self.spread, self.head(functional.relu(features))

    def logits_of(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits [b, c] that belong to features [b, d]."""
        logits: torch.Tensor = self.head(functional.relu(features * self.spread + self.centre))
        return logits

    @torch.no_grad()
    def take_units_from(self, pixels: torch.Tensor) -> None:
        """Take the features' mean over images [n, 3, h, w] for 0, and their deviation for 1."""
        features, _ = self(pixels)
        self.centre.copy_(features.mean(0))
        self.spread.copy_(features.std(0).clamp_min(LEAST_SPREAD))


class ClassifierEncoder(TorchEncoder):
    """The network as an encoder."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [b, d] and logits [b, c]."""
        features, logits = self.model(pixels)
        return features, logits

    def classes_of(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the class that the network sees in features [n, d]."""
        with torch.inference_mode():
            logits = self.model.logits_of(torch.from_numpy(np.array(features)))
        found: NDArray[np.int64] = logits.argmax(1).cpu().numpy()
        return found


@dataclass(frozen=True)
class ClassifierFiles:
    """Where a trained classifier is, and how its images are cut.

    Attributes:
        weights: A safetensors file.
        class_names: One per output.
        resolution_px: Side of the images.
    """

    weights: Path
    class_names: list[str]
    resolution_px: int

    def is_whole(self) -> bool:
        """Tell whether the weights are there as they were written."""
        if not self.weights.is_file():
            return False
        try:
            load_tensors(self.weights)
        except RunError as error:
            logger.warning("%s: trained again", error.message)
            return False
        return True

    def load(self) -> ClassifierEncoder:
        """Read the network.

        Raises:
            RunError: `corrupt`: the weights are not what was written.
        """
        network = SmallNetwork(len(self.class_names))
        network.load_state_dict(load_tensors(self.weights)[0])
        preprocessing = Preprocessing(
            size_px=self.resolution_px,
            crop_px=self.resolution_px,
            resample="bicubic",
            mean=CENTRE,
            std=CENTRE,
        )
        return ClassifierEncoder(
            NAME,
            network,
            preprocessing,
            device=torch.device("cpu"),
            class_names=self.class_names,
            settings={"feature": "before the last activation"},
        )


def train_classifier(pool: ImageIndex, files: ClassifierFiles) -> None:
    """Train the network on all images of the pool, and write its weights.

    Raises:
        InputError: `no_labels`; `too_many_images`; `bad_image`: one can't be decoded.
    """
    if pool.labels is None:
        raise InputError("no_labels", f"{pool.source} has no classes to train a judge on")
    if len(pool) > MAX_IMAGES:
        raise InputError(
            "too_many_images",
            f"a classifier is trained on {MAX_IMAGES:,} images at most, not {len(pool):,}; name a "
            "published encoder as the judge",
        )
    pixels = torch.from_numpy(read_pixels(pool, files.resolution_px))
    labels = torch.from_numpy(pool.labels)
    with on_cores(1), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)  # of the weights at the start, within the fork only
        network = SmallNetwork(len(files.class_names))
        optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        for epoch in range(N_EPOCHS):
            order = generator(SEED, NAME, epoch).permutation(len(labels))
            for start in range(0, len(order), BATCH_SIZE):
                rows = torch.from_numpy(order[start : start + BATCH_SIZE])
                loss = functional.cross_entropy(network(pixels[rows])[1], labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        network.take_units_from(pixels)
    save_tensors(files.weights, network.state_dict(), {})


def accuracy(encoder: ClassifierEncoder, index: ImageIndex, resolution_px: int) -> float | None:
    """Return the share of images whose class the network sees; None without labels."""
    if index.labels is None:
        return None
    numbers = {name: number for number, name in enumerate(encoder.class_names or [])}
    expected = np.array([numbers.get(name, -1) for name in index.class_names])[index.labels]
    features, _ = encoder.encode(read_pixels(index, resolution_px))
    return float((encoder.classes_of(features) == expected).mean())


def read_pixels(index: ImageIndex, resolution_px: int) -> NDArray[np.float32]:
    """Read images as float32 [n, 3, r, r] in [-1, 1].

    Raises:
        InputError: `bad_image`: one can't be decoded.
    """
    found = np.empty((len(index), 3, resolution_px, resolution_px), dtype=np.float32)
    for row in range(len(index)):
        try:
            image = decode(index.read(row)).image
        except ImageError as error:
            raise bad_image(index.ids[row], error) from error
        if image.size != (resolution_px, resolution_px):
            image = resize_and_crop(image, resize_px=resolution_px, crop_px=resolution_px)
        found[row] = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1.0
    return found
