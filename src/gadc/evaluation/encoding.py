"""The features of every set of an evaluation, by one encoder and of images of one size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gadc.errors import InputError
from gadc.evaluation.judged import Judged, with_features
from gadc.features.components import principal_components, project
from gadc.features.encoders import Encoder
from gadc.features.extract import extract
from gadc.features.rows import FeatureRows
from gadc.features.store import ROWS_NAME
from gadc.features.tensors import map_tensors
from gadc.images.decode import decode, resize_and_crop
from gadc.images.faults import ImageError, bad_image
from gadc.runtime import ProgressStyle
from gadc.storage import digest

IMAGES_KEY = "images"
"""Of the fingerprint: what is done to images before the encoder sees them."""
SCALED, NOT_SCALED = "shorter side scaled (bicubic), central square", "none"
ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Size:
    """Of the images that the encoder sees.

    Attributes:
        width: In pixels.
        height: In pixels.
        is_scaled: Images of other sizes are scaled and cropped; otherwise they are an error.
    """

    width: int
    height: int
    is_scaled: bool

    def as_json(self) -> dict[str, Any]:
        """Return what the protocol says."""
        how = SCALED if self.is_scaled else NOT_SCALED
        return {"size_px": [self.width, self.height], "resize": how}

    @classmethod
    def from_json(cls, described: dict[str, Any]) -> Self:
        """Return what `as_json` described."""
        width, height = described["size_px"]
        return cls(int(width), int(height), is_scaled=described["resize"] == SCALED)


def common_size(generated: Judged, size_px: int | None) -> Size | None:
    """Return the size that all images must have: that asked for, or that of the generated ones.

    Returns:
        None where only features of the generated images are there, which don't tell it.

    Raises:
        InputError: `bad_image`: the first generated image can't be decoded.
    """
    if size_px is not None:
        return Size(size_px, size_px, is_scaled=True)
    if generated.index is None:
        found = (encoder_of(generated) or {}).get(IMAGES_KEY)
        return None if found is None else Size.from_json(found)
    try:
        image = decode(generated.index.read(0)).image
    except ImageError as error:
        raise bad_image(generated.index.ids[0], error) from error
    return Size(*image.size, is_scaled=False)


class SizedEncoder:
    """An encoder that is given images of one size.

    A model's images and real ones of another size differ before anything else does, so the
    published protocols bring the real ones to the size of the generated ones first.
    """

    def __init__(self, encoder: Encoder, size: Size) -> None:
        self._encoder, self._size = encoder, size
        self.name = encoder.name
        self.device = encoder.device
        self.class_names = None
        self.n_components = encoder.n_components
        self.n_features = encoder.n_features

    def fingerprint(self) -> dict[str, Any]:
        """Return the encoder's, and what was done to the images before."""
        return {**self._encoder.fingerprint(), IMAGES_KEY: self._size.as_json()}

    def preprocess(self, image: Image.Image) -> NDArray[Any]:
        """Return the network's input."""
        size = self._size
        if image.size != (size.width, size.height):
            if not size.is_scaled:
                raise InputError(
                    "image_sizes",
                    f"an image has {image.width} x {image.height} pixels, the generated ones "
                    f"{size.width} x {size.height}; give size_px={min(size.width, size.height)} to "
                    "scale and crop all of them to one size",
                )
            image = resize_and_crop(image, resize_px=size.width, crop_px=size.width)
        return self._encoder.preprocess(image)

    def encode(self, batch: NDArray[Any]) -> tuple[NDArray[Any], None]:
        """Return features [b, d]."""
        return self._encoder.encode(batch)[0], None


def encode(
    judged: Judged,
    encoder: Encoder | None,
    size: Size | None,
    folder: Path,
    *,
    batch_size: int,
    decode_workers: int,
    show: ProgressStyle,
) -> Judged:
    """Compute the features of a set's images, unless it has features, and keep them in a folder.

    A second run finds them there, and a killed one goes on; see `gadc.features.extract.extract`.

    Raises:
        InputError: `image_sizes`; `encoder_mismatch`: the features there are of another encoder;
            or as `extract`. No image is left out: one that can't be decoded is an error.
    """
    if judged.features is not None:
        _check_encoder(judged, encoder)
        return judged
    if judged.index is None:
        return judged
    if encoder is None:
        raise InputError("bad_encoder", f"{judged.source} holds images; name an encoder for them")
    found = extract(
        judged.index,
        encoder if size is None else SizedEncoder(encoder, size),
        folder,
        batch_size=batch_size,
        decode_workers=decode_workers,
        on_error="fail",
        show=show,
    )
    return with_features(judged, found, folder)


def encoder_of(judged: Judged) -> dict[str, Any] | None:
    """Return the fingerprint of the encoder that features come from; None if nobody knows."""
    if judged.features is None:
        return None
    found: dict[str, Any] | None = judged.features.provenance.get("encoder")
    return found


def _check_encoder(judged: Judged, encoder: Encoder | None) -> None:
    found = encoder_of(judged)
    if found is None or encoder is None:
        return
    bare = {key: value for key, value in found.items() if key != IMAGES_KEY}
    if digest(bare) != digest(encoder.fingerprint()):  # as JSON, which has no tuples
        raise InputError(
            "encoder_mismatch",
            f"the features of {judged.source} come from {bare.get('name')}, which is another "
            f"encoder, or has other weights or settings, than {encoder.name} here; give the images",
        )


def check_alike(sets: list[Judged]) -> None:
    """Raise `encoder_mismatch` unless all features that say so come from one encoder and size."""
    known = [(judged, encoder_of(judged)) for judged in sets]
    described = [(judged, found) for judged, found in known if found is not None]
    for judged, found in described[1:]:
        first, expected = described[0]
        keys = set(found) | set(expected)
        if IMAGES_KEY not in found or IMAGES_KEY not in expected:
            keys -= {IMAGES_KEY}  # of an extraction for another purpose, at the encoder's size
        if any(found.get(key) != expected.get(key) for key in keys):
            raise InputError(
                "encoder_mismatch",
                f"{first.source} and {judged.source} come from different encoders, weights or "
                f"image sizes ({expected.get('name')}, {found.get('name')}); extract both alike",
            )


def comparable_rows(sets: list[Judged]) -> list[FeatureRows]:
    """Return the features of sets in common coordinates.

    Features that are principal components (`pixels`) have axes of their own in every data set:
    all are projected on those of the first set.

    Raises:
        InputError: `rows_missing`: a set lacks the rows behind such features.
    """
    features = [judged.features for judged in sets if judged.features is not None]
    n_components = (encoder_of(sets[0]) or {}).get("n_components")
    if n_components is None:
        return [found.features for found in features]
    mean, directions = principal_components(lambda: _raw_blocks(sets[0]), n_components=n_components)
    return [
        np.concatenate([project(block, mean, directions) for block in _raw_blocks(judged)])
        for judged in sets
    ]


def _raw_blocks(judged: Judged) -> Iterator[NDArray[np.uint8]]:
    path = None if judged.folder is None else judged.folder / ROWS_NAME
    if path is None or not path.is_file():
        raise InputError(
            "rows_missing",
            f"{judged.source} has no {ROWS_NAME}, which a comparison of two sets by this encoder "
            "needs; give the images",
        )
    tensors, _ = map_tensors(path)
    rows = tensors["rows"].values
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        yield rows[start : start + ROWS_AT_A_TIME]


def as_tensor(rows: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return rows on the device where measures are computed."""
    return torch.from_numpy(np.require(rows, requirements=["C", "W"])).to(device)
