"""The images that are trained on: those of a subset, or all of a folder."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.images.decode import DecodePolicy, decode, resize_and_crop
from gadc.images.faults import ImageError, bad_image
from gadc.images.selected import SelectedImages
from gadc.images.source import ImageIndex
from gadc.storage import digest, escape_name
from gadc.subset import Subset

DECODE_POLICY = DecodePolicy()


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """Which images, of which classes, and where their bytes are.

    Attributes:
        ids: One name per image.
        sha256: Digest of each image's bytes.
        labels: Int64 [n], numbers from 0 without gaps; None without classes.
        class_names: Name of each class; empty without classes.
        selected: Gives the bytes, and compares them with the digests.
    """

    ids: list[str]
    sha256: list[str]
    labels: NDArray[np.int64] | None
    class_names: list[str]
    selected: SelectedImages

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
        content = self.selected.read(row)
        if content is None:
            raise InputError(
                "source_changed",
                f"{name} is not the image that was selected; restore it, or select again",
            )
        try:
            image = decode(content, DECODE_POLICY).image
        except ImageError as error:
            raise bad_image(name, error) from error
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

    Those without a digest, such as those chosen from features alone, are read once for one: a run
    that goes on must find the same images.

    Args:
        subset: Which images.
        index: The source that they were selected from.

    Raises:
        InputError: `source_mismatch`: the source lacks some of them.
    """
    numbers, labels = np.unique(subset.labels, return_inverse=True)
    names = dict(zip(subset.labels.tolist(), subset.class_name, strict=True))
    sha256 = _digests(index, subset.paths, subset.sha256)
    return TrainingImages(
        ids=list(subset.paths),
        sha256=sha256,
        labels=labels.astype(np.int64),
        class_names=[names[number] for number in numbers.tolist()],
        selected=SelectedImages(index, subset.paths, sha256),
    )


def images_of_index(index: ImageIndex) -> TrainingImages:
    """Return all images of a source.

    Every image is read once for its digest: a run that goes on must find the same images.

    Raises:
        InputError: `source_changed`: one can't be read.
    """
    labels, class_names = None, []
    if index.labels is not None:
        numbers, labels = np.unique(index.labels, return_inverse=True)
        class_names = [index.class_names[number] for number in numbers.tolist()]
    sha256 = _digests(index, index.ids, [None] * len(index))
    return TrainingImages(
        ids=list(index.ids),
        sha256=sha256,
        labels=labels,
        class_names=class_names,
        selected=SelectedImages(index, index.ids, sha256),
    )


def _digests(index: ImageIndex, ids: Sequence[str], known: Sequence[str | None]) -> list[str]:
    """Return the digest of each image, taken now where none is known."""
    images = SelectedImages(index, ids, known)
    return [
        hashlib.sha256(images.peek(row)).hexdigest() if sha256 is None else sha256
        for row, sha256 in enumerate(known)
    ]
