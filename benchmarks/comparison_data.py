"""The data sets of the comparisons: digits, and CIFAR-10 in two feature spaces.

Digits are scikit-learn's 1,797 images of 8 x 8 pixels; a fifth is held out. Its judge is the hidden
layer of a small network, trained on the very labels: a space that no method sees.

CIFAR-10 needs `train_resnet56_features.safetensors`, `test_resnet56_features.safetensors`,
`train.parquet` and `test.parquet` in one folder. `pixels` are the 64 leading principal components
of the 32 x 32 pixels of all training images, as `gadc features --encoder pixels` has them.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from gadc.features.store import SUMMARY_NAME, load_features
from gadc.runs.inputs import ImageSettings, comparable_target, extract_features
from gadc.runtime import generator

N_HIDDEN = 32
SPLITS = ("train", "test")


def digits(folder: Path) -> None:
    """Write `digits-pixels` and `digits-network` (.safetensors)."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images / 16.0).astype(np.float32)
    network = MLPClassifier((N_HIDDEN,), max_iter=500, random_state=0).fit(pixels, labels)
    hidden = np.maximum(pixels @ network.coefs_[0] + network.intercepts_[0], 0.0)
    for name, values in (("pixels", pixels), ("network", hidden)):
        arrays = {"features": values.astype(np.float32), "labels": labels.astype(np.int64)}
        save_file(arrays, folder / f"digits-{name}.safetensors")


def cifar10(folder: Path, source: Path, n_per_class: int) -> None:
    """Write `cifar10-{resnet56,pixels}-{n_per_class,test}.safetensors`, unless they are there.

    Args:
        folder: Where to.
        source: The folder of CIFAR-10.
        n_per_class: Training images of each class, drawn with seed 0; test images are all there.
    """
    if (folder / f"cifar10-pixels-{n_per_class}.safetensors").is_file():
        return
    pixel_sets = {}
    for split in SPLITS:
        extracted = folder / f"cifar-{split}-pixels"
        if (extracted / SUMMARY_NAME).is_file():
            pixel_sets[split] = load_features(extracted)
        else:
            settings = ImageSettings(encoder="pixels")
            pixel_sets[split] = extract_features(source / f"{split}.parquet", extracted, settings)
    pixel_sets["test"] = comparable_target(
        pixel_sets["test"],
        folder / "cifar-test-pixels",
        pixel_sets["train"],
        folder / "cifar-train-pixels",
    )
    for split in reversed(SPLITS):  # the training images last: they say that all is there
        network = load_file(source / f"{split}_resnet56_features.safetensors")
        labels = network["labels"]
        rows = np.arange(len(labels))
        if split == "train":
            rows = np.sort(
                np.concatenate(
                    [
                        generator(0, "subsample", label).choice(
                            np.flatnonzero(labels == label), n_per_class, replace=False
                        )
                        for label in range(int(labels.max()) + 1)
                    ]
                )
            )
        pixels = pixel_sets[split]
        if not np.array_equal(pixels.labels, labels):
            raise SystemExit(f"the rows of {split}.parquet and of its features differ")
        metadata = {"class_names": json.dumps(pixels.class_names)}
        own = {name: np.ascontiguousarray(values[rows]) for name, values in network.items()}
        other = {"features": np.asarray(pixels.features)[rows], "labels": own["labels"]}
        for name, arrays in (("resnet56", own), ("pixels", other)):
            part = n_per_class if split == "train" else split
            path = folder / f"cifar10-{name}-{part}.safetensors"
            save_file(arrays, path, metadata=metadata)
