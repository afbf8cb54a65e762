"""The images of an experiment: those that may be selected, and those that nothing has seen."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gadc.demo import write_digits
from gadc.errors import InputError
from gadc.experiment.protocol import DIGITS, DataPart
from gadc.images.index import open_index
from gadc.images.part import part_of
from gadc.images.source import ImageIndex
from gadc.runtime import generator

SPLIT_SEED = 0
"""One split for all seeds: a seed varies the method, not the question."""
DIGITS_FOLDER = "digits"
KEY_CHARACTERS = 16
"""Of a digest, in the name of a stage's folder."""


@dataclass(frozen=True, eq=False)
class Images:
    """Where the images are.

    Attributes:
        source: Folder or file of the pool.
        index: All images of the source.
        pool: Those that may be selected, with their labels.
        held_out: Other images, with labels if they have some; None without.
    """

    source: Path
    index: ImageIndex
    pool: ImageIndex
    held_out: ImageIndex | None


def find_images(part: DataPart, out: Path) -> Images:
    """Find the images, and split off those to hold out.

    Args:
        part: What the protocol says.
        out: The experiment's folder; the digits are written there.

    Raises:
        InputError: Sources that can't be used; `holdout_range`: a class would be left empty;
            `no_labels`: a share of each class needs classes.
    """
    source = out / DIGITS_FOLDER if part.source == DIGITS else Path(part.source)
    if part.source == DIGITS:
        source.mkdir(exist_ok=True)
        write_digits(source)
    source = Path(os.path.abspath(source))
    index = open_index(source)
    if part.held_out is None:
        return Images(source, index, index, None)
    if isinstance(part.held_out, str):
        return Images(source, index, index, open_index(Path(os.path.abspath(part.held_out))))
    rows, others = split_off(index, part.held_out)
    return Images(source, index, labelled_part(index, rows), labelled_part(index, others))


def split_off(index: ImageIndex, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide images into pool and held-out ones, the same share of each class.

    Returns:
        Rows of the pool, and held-out rows.
    """
    if index.labels is None:
        raise InputError("no_labels", f"{index.source} has no classes to hold out a share of")
    is_held_out = np.zeros(len(index), dtype=np.bool_)
    for label, name in enumerate(index.class_names):
        rows = np.flatnonzero(index.labels == label)
        rows = rows[np.argsort([index.ids[row] for row in rows.tolist()], kind="stable")]
        n_held_out = round(share * len(rows))
        if len(rows) and n_held_out == len(rows):
            raise InputError(
                "holdout_range",
                f"holdout={share} leaves class {name!r} of {len(rows)} images none to select "
                "from; hold out less",
            )
        drawn = generator(SPLIT_SEED, "held-out", name).permutation(len(rows))[:n_held_out]
        is_held_out[rows[drawn]] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def labelled_part(index: ImageIndex, rows: NDArray[np.int64] | Sequence[int]) -> ImageIndex:
    """Return some images of a source as a source, with their labels."""
    positions = np.asarray(rows, dtype=np.int64)
    ids = [index.ids[row] for row in positions.tolist()]
    found = part_of(index, ids, [None] * len(ids))
    if index.labels is None:
        return found
    return dataclasses.replace(
        found, labels=index.labels[positions], class_names=list(index.class_names)
    )
