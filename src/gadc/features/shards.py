"""Features in a folder of safetensors files, for sets that are larger than memory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.features.checks import (
    as_class_indices,
    as_float_matrix,
    as_probabilities,
    check_class_range,
    check_lengths,
)
from gadc.features.formats import (
    ID_NAMES,
    LABEL_NAMES,
    FeatureFile,
    class_names_of,
    first_of,
    name_of_features,
)
from gadc.features.rows import ShardedRows
from gadc.features.tensors import StoredTensor, map_tensors, release_pages

SHARD_SUFFIX = ".safetensors"
BESIDE_SHARDS = frozenset([".json", ".md", ".txt"])
"""Indices and notes may lie beside shards; they are not read."""
PROBABILITIES = "probabilities"
ROWS_AT_A_TIME = 16_384


def shard_paths(folder: Path) -> list[Path]:
    """Return the shards of a folder by name; none if there is anything else in it."""
    shards = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1]
                if entry.name.startswith(".") or (suffix in BESIDE_SHARDS and entry.is_file()):
                    continue
                if suffix != SHARD_SUFFIX or not entry.is_file():
                    return []  # at once: a folder of images may be large
                shards.append(folder / entry.name)
    except OSError:
        return []  # whoever reads the folder has the better error
    return sorted(shards)


def read_feature_shards(paths: list[Path]) -> FeatureFile:
    """Open a set of features that is divided among files.

    Every file holds what `read_feature_file` reads from one, under the same names; their rows
    follow each other in the order given. Ids and labels are read, features and probabilities stay
    on disk, in whatever number type.

    Args:
        paths: `.safetensors` files, at least one.

    Raises:
        InputError: What a single file may be refused for, or `shards_disagree`: one lacks a tensor
            that another has, or has other class names or another number of columns.
    """
    opened = [(path, *map_tensors(path)) for path in paths]
    shards = [(path, tensors) for path, tensors, _ in opened]
    names = [class_names_of(path, metadata.get("class_names")) for path, _, metadata in opened]
    class_names = _common(paths, names, "class names")
    _common(paths, [sorted(tensors) for _, tensors in shards], "tensors")
    first_path, first = shards[0]
    feature_name = name_of_features(first_path, _columns(first))
    columns = {feature_name, PROBABILITIES, *LABEL_NAMES, *ID_NAMES}
    for path, tensors in shards:
        n_rows = len(np.atleast_1d(tensors[feature_name].values))
        described = {name: tensor.values for name, tensor in tensors.items() if name in columns}
        check_lengths(path, n_rows, **described)
    features = _sharded(shards, feature_name, _check_features)
    probabilities = None
    if PROBABILITIES in first:
        probabilities = _sharded(shards, PROBABILITIES, _check_probabilities)
    labels, given = None, _joined(shards, LABEL_NAMES)
    if class_names is None and (given is None or probabilities is not None):
        n_columns = 0 if probabilities is None else probabilities.shape[1]
        class_names = [str(column) for column in range(n_columns)]
    if given is not None:
        name = f"labels of {first_path.parent}"
        labels, class_names = as_class_indices(given, class_names, name)
    if probabilities is not None:
        check_class_range(first_path.parent, class_names or [], probabilities)
    ids = _joined(shards, ID_NAMES)
    return FeatureFile(
        features,
        labels,
        class_names or [],
        probabilities,
        None if ids is None else [str(name) for name in ids.tolist()],
    )


Tensors = dict[str, StoredTensor]


def _columns(tensors: Tensors) -> dict[str, NDArray[Any]]:
    return {name: tensor.values for name, tensor in tensors.items()}


def _common(paths: list[Path], found: list[Any], what: str) -> Any:
    """Return what all shards have; raise if one has something else."""
    for path, entry in zip(paths, found, strict=True):
        if entry != found[0]:
            raise InputError(
                "shards_disagree",
                f"{path} and {paths[0]} differ in their {what}; write all shards alike, or keep "
                "different sets in different folders",
            )
    return found[0]


def _sharded(
    shards: list[tuple[Path, Tensors]], name: str, check: Callable[[NDArray[Any], str], object]
) -> ShardedRows:
    """Check a matrix of every shard, block by block, and put them below each other."""
    parts = [tensors[name] for _, tensors in shards]
    paths = [path for path, _ in shards]
    for path, part in zip(paths, parts, strict=True):
        if part.values.ndim != 2:
            check(part.values, f"{name} of {path}")
    _common(paths, [part.values.shape[1:] for part in parts], f"columns of {name}")
    for path, part in zip(paths, parts, strict=True):
        for start in range(0, len(part.values), ROWS_AT_A_TIME):
            rows = np.arange(start, min(start + ROWS_AT_A_TIME, len(part.values)))
            check(part.numbers(rows), f"{name} of {path}, from row {start} on")
            release_pages(part.values)
    return ShardedRows(parts)


def _check_features(block: NDArray[Any], name: str) -> None:
    as_float_matrix(block, name)


def _check_probabilities(block: NDArray[Any], name: str) -> None:
    as_probabilities(block, name)


def _joined(shards: list[tuple[Path, Tensors]], names: tuple[str, ...]) -> NDArray[Any] | None:
    """Return a column of all shards in memory; None if they have none by these names."""
    columns = [first_of(_columns(tensors), names) for _, tensors in shards]
    found = [np.array(column) for column in columns if column is not None]
    return np.concatenate(found) if found else None
