"""How hard each image is, from a file that somebody's training wrote."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.features.formats import read_labels
from gadc.features.store import FeatureSet

ID_COLUMNS = ("id", "path")
SIGNS = {"difficulty": 1.0, "loss": 1.0, "aum": -1.0, "margin": -1.0}
"""Columns of scores; a high margin is an easy image."""
N_EXAMPLES = 3


def read_scores(path: Path, features: FeatureSet) -> NDArray[np.float64]:
    """Read a difficulty for each image, higher for harder, float64 [n].

    Args:
        path: `.npy` with a difficulty per row of the features; `.json`, a list of dictionaries
            `{id or path: difficulty}` as D2C's code reads them; `.csv` or `.parquet` with a
            column `id` or `path` and one of `difficulty`, `loss` (higher is harder), `aum`,
            `margin` (higher is easier).
        features: The images; more of them may stand in the file.

    Raises:
        InputError: `scores_missing` if there is no file or it lacks an image; `bad_scores`.
    """
    if not path.is_file():
        raise InputError("scores_missing", f"there is no file {path}; give --scores FILE")
    if path.suffix == ".npy":
        values = read_labels(path)
        if values.shape != (features.n_images,) or values.dtype.kind not in "fiu":
            raise InputError(
                "bad_scores",
                f"{path} must hold {features.n_images} numbers, one per row; it has shape "
                f"{list(values.shape)} of {values.dtype}",
            )
        found = values.astype(np.float64)
    else:
        found = _by_image(_read_named(path), features, path)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found))[0])
        raise InputError("bad_scores", f"{path}: the score of {features.ids[row]!r} is not finite")
    return found


def _by_image(scores: dict[str, float], features: FeatureSet, path: Path) -> NDArray[np.float64]:
    found = [
        scores.get(name, scores.get(place))
        for name, place in zip(features.ids, features.paths, strict=True)
    ]
    missing = [name for name, score in zip(features.ids, found, strict=True) if score is None]
    if missing:
        raise InputError(
            "scores_missing",
            f"{path} lacks {len(missing)} of {features.n_images} images: "
            f"{', '.join(map(repr, missing[:N_EXAMPLES]))}; score every image",
        )
    return np.array(found, dtype=np.float64)


def _read_named(path: Path) -> dict[str, float]:
    try:
        if path.suffix == ".json":
            parts: Any = json.loads(path.read_bytes())
            merged = {} if isinstance(parts, list) else dict(parts)
            for part in parts if isinstance(parts, list) else []:
                merged.update(part)
            return {str(name): float(score) for name, score in merged.items()}
        if path.suffix == ".csv":
            table = pyarrow.csv.read_csv(path)
        elif path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            raise InputError("bad_scores", f"{path}: suffix must be .npy, .json, .csv or .parquet")
        ids = next((name for name in ID_COLUMNS if name in table.column_names), None)
        scores = next((name for name in SIGNS if name in table.column_names), None)
        if ids is None or scores is None:
            raise InputError(
                "bad_scores",
                f"{path} has the columns {', '.join(table.column_names)}; it needs one of "
                f"{', '.join(ID_COLUMNS)} and one of {', '.join(SIGNS)}",
            )
        sign = SIGNS[scores]
        return {
            str(name): sign * float(score)
            for name, score in zip(
                table.column(ids).to_pylist(), table.column(scores).to_pylist(), strict=True
            )
        }
    except InputError:
        raise
    except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
        raise InputError("bad_scores", f"can't read scores from {path}: {error}") from error
