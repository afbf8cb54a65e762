"""Targets on their way to the finished file: parts that a killed run leaves to the next one."""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gadc.attach.visual import N_ORIENTATIONS, PatchEncoder
from gadc.errors import InputError, RunError
from gadc.features.forward import BlockForward
from gadc.images.decode import DecodePolicy, decode, resize_and_crop
from gadc.images.faults import ImageError, bad_image
from gadc.images.selected import SelectedImages
from gadc.runtime import ProgressStyle, progress
from gadc.storage import digest, escape_name
from gadc.training.tensor_files import load_tensors, save_tensors

logger = logging.getLogger(__name__)

PARTS_FOLDER = ".attach-parts"
PART_IMAGES = 128
"""So much work a kill can cost; a part of the published targets has 100 MB in float16."""
PART_KEY = "gadc_part"
SPACE_FACTOR = 2
"""Parts and the finished file lie on the disk together for a moment."""


def visual_targets(
    images: SelectedImages,
    encoder: PatchEncoder,
    out: Path,
    *,
    mirrored: bool,
    stored_type: torch.dtype,
    batch_size: int,
    show: ProgressStyle,
) -> tuple[torch.Tensor, int]:
    """Compute the targets of images, or find those that an earlier run left.

    Args:
        images: Read one by one and compared with their digests.
        encoder: Gives the tokens.
        out: The folder whose parts are used; it is locked.
        mirrored: Also of the mirror images.
        stored_type: Number type of the result.
        batch_size: Inputs per forward pass on a GPU.
        show: See `gadc.runtime.progress`.

    Returns:
        Targets [n, 1 or 2, n_tokens, width], and how many images were computed now.

    Raises:
        InputError: `source_changed`, `bad_image`.
        RunError: `no_space`, `disk_full`, `features_not_finite`.
    """
    n_orientations = N_ORIENTATIONS if mirrored else 1
    shape = (len(images), n_orientations, encoder.n_tokens, encoder.n_features)
    folder = out / PARTS_FOLDER
    _check_space(out, shape, stored_type)
    folder.mkdir(exist_ok=True)
    targets = torch.empty(shape, dtype=stored_type)
    described = [encoder.fingerprint(), n_orientations, str(stored_type)]
    n_computed = 0
    with (
        progress("attach", len(images), style=show) as bar,
        BlockForward(encoder, batch_size) as forward,
    ):
        for rows in _ranges(len(images)):
            names = [escape_name(images.ids[row]) for row in rows]
            contents = [_content(images, row) for row in rows]
            wanted = digest([*described, names, [digest(each.hex()) for each in contents]])
            path = folder / f"{rows.start:08d}.safetensors"
            part = _found(path, wanted)
            if part is None:
                part = _computed(
                    [
                        _square(*each, encoder.image_size_px)
                        for each in zip(contents, names, strict=True)
                    ],
                    encoder,
                    forward,
                    mirrored=mirrored,
                    stored_type=stored_type,
                )
                save_tensors(path, {"visual": part}, {PART_KEY: json.dumps(wanted)})
                n_computed += len(rows)
            targets[rows.start : rows.stop] = part
            bar.advance(len(rows))
    return targets, n_computed


def clear_parts(out: Path) -> None:
    """Remove the parts; call it when the finished file is written."""
    shutil.rmtree(out / PARTS_FOLDER, ignore_errors=True)


def _ranges(n_images: int) -> Iterator[range]:
    for start in range(0, n_images, PART_IMAGES):
        yield range(start, min(start + PART_IMAGES, n_images))


def _content(images: SelectedImages, row: int) -> bytes:
    content = images.read(row)
    if content is None:
        raise InputError(
            "source_changed",
            f"{images.ids[row]} is not the image that was selected; restore it, or select again",
        )
    return content


def _square(content: bytes, name: str, image_size_px: int) -> Image.Image:
    """Return the square that training cuts from an image."""
    try:
        image = decode(content, DecodePolicy()).image
    except ImageError as error:
        raise bad_image(name, error) from error
    return resize_and_crop(image, resize_px=image_size_px, crop_px=image_size_px)


def _computed(
    squares: list[Image.Image],
    encoder: PatchEncoder,
    forward: BlockForward,
    *,
    mirrored: bool,
    stored_type: torch.dtype,
) -> torch.Tensor:
    """Return the targets of images, [b, 1 or 2, n_tokens, width]."""
    n_orientations = N_ORIENTATIONS if mirrored else 1
    n_images = max(1, forward.n_at_once // n_orientations)
    blocks = []
    for start in range(0, len(squares), n_images):
        chosen = squares[start : start + n_images]
        inputs = [encoder.orientations(square, mirrored=mirrored) for square in chosen]
        tokens, _ = forward(np.concatenate(inputs))  # [b * orientations, n_tokens, width]
        blocks.append(_stored(tokens, stored_type, encoder.name))
    part = torch.cat(blocks)
    return part.reshape(len(squares), n_orientations, *part.shape[1:])


def _stored(tokens: NDArray[np.float32], stored_type: torch.dtype, name: str) -> torch.Tensor:
    if not np.isfinite(tokens).all():
        raise RunError(
            "features_not_finite", f"encoder {name} gives NaN or infinity; check the weights"
        )
    part = torch.from_numpy(tokens).to(stored_type)
    if not torch.isfinite(part).all():
        raise RunError(
            "features_not_finite",
            f"encoder {name} gives numbers beyond {stored_type}; store float32 or bfloat16",
        )
    return part


def _found(path: Path, wanted: str) -> torch.Tensor | None:
    """Return a part if it is whole and of these images, encoder and settings."""
    if not path.is_file():
        return None
    try:
        tensors, metadata = load_tensors(path)
    except RunError as error:
        logger.warning("%s; computed again", error.message)
        return None
    return tensors["visual"] if metadata.get(PART_KEY) == json.dumps(wanted) else None


def _check_space(out: Path, shape: Sequence[int], stored_type: torch.dtype) -> None:
    n_bytes = SPACE_FACTOR * int(np.prod(shape, dtype=np.float64)) * stored_type.itemsize
    free = shutil.disk_usage(out).free
    if n_bytes > free:
        raise RunError(
            "no_space",
            f"the run needs {n_bytes / 1e9:.1f} GB in {out}, where {free / 1e9:.1f} GB are free; "
            "free some, or choose another folder",
        )
