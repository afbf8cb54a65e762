"""The images that are trained on: those of a subset, or all of a folder."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.images.decode import DecodePolicy, decode, resize_and_crop
from gadc.images.faults import ImageError
from gadc.images.source import ImageIndex, examples
from gadc.storage import digest, escape_name
from gadc.subset import Subset

DECODE_POLICY = DecodePolicy()


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """Which images, of which classes, and where their bytes are.

    Attributes:
        ids: One name per image.
        sha256: Digest of each image's bytes, None where nobody took one.
        labels: Int64 [n], numbers from 0 without gaps; None without classes.
        class_names: Name of each class; empty without classes.
        index: Where the bytes are.
        positions: Place of each image in the index, int64 [n].
    """

    ids: list[str]
    sha256: list[str | None]
    labels: NDArray[np.int64] | None
    class_names: list[str]
    index: ImageIndex
    positions: NDArray[np.int64]

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """Digest of which images these are, in which order and of which classes."""
        labels = None if self.labels is None else self.labels.tolist()
        return digest([[escape_name(name) for name in self.ids], self.sha256, labels])

    def pixels(self, row: int, *, resolution_px: int) -> NDArray[np.uint8]:
        """Read one image.

        Args:
            row: Which.
            resolution_px: The shorter side is scaled to it and the central square is taken.

        Returns:
            Uint8 [3, resolution_px, resolution_px].

        Raises:
            InputError: `source_changed`, gone or not the image that was selected; `bad_image`,
                it can't be decoded.
        """
        name = self.ids[row]
        try:
            content = self.index.read(int(self.positions[row]))
        except ImageError as error:
            raise InputError(
                "source_changed", f"{name}: {error.message}; restore it, or select again"
            ) from error
        expected = self.sha256[row]
        if expected is not None and hashlib.sha256(content).hexdigest() != expected:
            raise InputError(
                "source_changed",
                f"{name} is not the image that was selected; restore it, or select again",
            )
        try:
            image = decode(content, DECODE_POLICY).image
        except ImageError as error:
            raise InputError(
                "bad_image", f"{name}: {error.code}: {error.message}; remove or repair it"
            ) from error
        square = resize_and_crop(image, resize_px=resolution_px, crop_px=resolution_px)
        return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))

    def batches(
        self, n_images: int, *, resolution_px: int
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Read all images, `n_images` at a time: the first row, and uint8 [b, 3, r, r]."""
        for start in range(0, self.n_images, n_images):
            rows = range(start, min(start + n_images, self.n_images))
            yield start, np.stack([self.pixels(row, resolution_px=resolution_px) for row in rows])


def images_of_subset(subset: Subset, index: ImageIndex) -> TrainingImages:
    """Return the images of a subset, in its order.

    Args:
        subset: Which images.
        index: The source that they were selected from.

    Raises:
        InputError: `source_mismatch`: the source lacks some of them.
    """
    wanted = set(subset.paths)
    places = {name: place for place, name in enumerate(index.ids) if name in wanted}
    if missing := [path for path in subset.paths if path not in places]:
        raise InputError(
            "source_mismatch",
            f"{index.source} lacks {len(missing)} of the {subset.n_images} selected images: "
            f"{examples(missing)}; give the source they were selected from",
        )
    numbers, labels = np.unique(subset.labels, return_inverse=True)
    names = dict(zip(subset.labels.tolist(), subset.class_name, strict=True))
    return TrainingImages(
        ids=list(subset.paths),
        sha256=list(subset.sha256),
        labels=labels.astype(np.int64),
        class_names=[names[number] for number in numbers.tolist()],
        index=index,
        positions=np.array([places[path] for path in subset.paths], np.int64),
    )


def images_of_index(index: ImageIndex) -> TrainingImages:
    """Return all images of a source."""
    labels, class_names = None, []
    if index.labels is not None:
        numbers, labels = np.unique(index.labels, return_inverse=True)
        class_names = [index.class_names[number] for number in numbers.tolist()]
    return TrainingImages(
        ids=list(index.ids),
        sha256=[None] * len(index),
        labels=labels,
        class_names=class_names,
        index=index,
        positions=np.arange(len(index), dtype=np.int64),
    )
