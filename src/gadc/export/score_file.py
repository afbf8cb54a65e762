"""A score per image, in the list of dictionaries that D2C's lineage of training code merges."""

import json
from typing import Literal, get_args

import numpy as np

from gadc.errors import InputError
from gadc.export.paths import listed_paths
from gadc.subset import Subset

Score = Literal["rank", "gain", "weight"]


def score_json(subset: Subset, *, score: Score = "rank", prefix: str = "") -> str:
    """Return a JSON list with one dictionary per class, `{path: score}` in order of selection.

    Readers merge the dictionaries, and take every k-th path by ascending score or as they stand.
    With the score `rank` both give the order of selection.

    Args:
        subset: What to list.
        score: `rank` in the order of selection, from 0; `gain`, the decrease of the objective;
            `weight`, how many images of the class each stands for.
        prefix: See `listed_paths`.

    Raises:
        InputError: `bad_choice`: another score.
    """
    if score not in get_args(Score):
        raise InputError("bad_choice", f"score={score!r}; use {' or '.join(get_args(Score))}")
    values = np.asarray(getattr(subset, score), np.float64)
    paths = listed_paths(subset, prefix=prefix)
    classes = [
        {paths[row]: float(values[row]) for row in np.flatnonzero(subset.labels == label)}
        for label in np.unique(subset.labels)
    ]
    return json.dumps(classes, indent=0) + "\n"
