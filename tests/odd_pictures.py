"""A folder of small real images under names that break careless code."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from image_sources import ODD_NAMES

ODD_CLASSES = ("train", "CON", "-x", "=1+1", "a b ", "\u202etxt", "e%2F", "new\nline", "q\"'<b>|`")
UNDECODABLE_CLASS = os.fsdecode(b"caf\xe9")


def picture(seed: int, *, form: str = "PNG") -> bytes:
    """Encode four by four pixels, other ones for each seed."""
    rng = np.random.default_rng(seed)
    encoded = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(encoded, form)
    return encoded.getvalue()


def write_pictures(root: Path, *names: str, form: str = "PNG") -> Path:
    """Write a different image for each name."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(seed, form=form))
    return root


def write_odd_pictures(root: Path) -> Path:
    """Write every odd name in a class, and every odd class with one image."""
    names = [f"plain/{name}" for name in ODD_NAMES]
    names += [f"{name}/1.png" for name in (*ODD_CLASSES, UNDECODABLE_CLASS)]
    return write_pictures(root, *names)
