"""From the classes of an encoder's own head to the classes of a data set."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError

MAX_FILE_BYTES = 64 << 20
N_EXAMPLES = 10
ClassMap = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class HeadMap:
    """How columns of head probabilities become columns of class probabilities.

    Attributes:
        columns: For each class of the data set, the head's columns that are summed.
        is_reordering: Every column of the head is used once: nothing to renormalise.
    """

    columns: list[list[int]]
    is_reordering: bool

    @property
    def is_identity(self) -> bool:
        """Whether the head's columns are the data set's classes in their order."""
        return self.is_reordering and self.columns == [[k] for k in range(len(self.columns))]

    def __call__(self, head_probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return float32 [b, c] from [b, columns of the head].

        Columns are summed per class, then divided by their sum over the classes. A row without any
        probability for them gets the same for each.
        """
        if self.is_reordering:
            return np.take(head_probabilities, [found[0] for found in self.columns], axis=1)
        heads = head_probabilities.astype(np.float64)
        summed = np.stack([heads[:, found].sum(axis=1) for found in self.columns], axis=1)
        total = summed.sum(axis=1, keepdims=True)
        uniform = np.full_like(summed, 1 / len(self.columns))
        shares = np.divide(summed, total, out=uniform, where=total > 0)
        return np.asarray(shares, dtype=np.float32)


def match_classes(
    head_names: Sequence[str] | None, class_names: Sequence[str], class_map: ClassMap | None
) -> HeadMap | None:
    """Find out how an encoder's classes give those of a data set.

    Args:
        head_names: Classes of the encoder's head; None if it has none.
        class_names: Classes of the data set.
        class_map: For each class of the data set the name of one or several classes of the
            encoder. None matches classes of equal names, if all of both have a counterpart.

    Returns:
        None if `class_map` is None and the names differ.

    Raises:
        InputError: A map for an encoder without a head, classes left out, or unknown names.
    """
    if class_map is None:
        same = head_names is not None and sorted(head_names) == sorted(class_names)
        if not same or len(set(class_names)) < len(class_names):
            return None
        class_map = {name: name for name in class_names}
    if head_names is None:
        raise InputError(
            "no_head", "a class map needs an encoder that classifies; this one gives features only"
        )
    if missing := [name for name in class_names if name not in class_map]:
        raise InputError(
            "class_map_incomplete",
            f"the class map lacks {len(missing)} classes of the data set: {_some(missing)}",
        )
    if extra := sorted(set(class_map) - set(class_names)):
        raise InputError(
            "class_map_unknown", f"the class map names classes the data set lacks: {_some(extra)}"
        )
    places: dict[str, list[int]] = {}
    for column, name in enumerate(head_names):
        places.setdefault(name, []).append(column)
    wanted = [_names(class_map[name]) for name in class_names]
    if unknown := sorted({name for names in wanted for name in names} - set(places)):
        raise InputError(
            "class_map_unknown", f"the encoder's head has no classes named {_some(unknown)}"
        )
    columns = [[column for name in names for column in places[name]] for names in wanted]
    if empty := [name for name, found in zip(class_names, columns, strict=True) if not found]:
        raise InputError("class_map_incomplete", f"the class map is empty for {_some(empty)}")
    used = sorted(column for found in columns for column in found)
    is_reordering = used == list(range(len(head_names))) and len(columns) == len(head_names)
    return HeadMap(columns, is_reordering)


def read_class_map(path: Path) -> dict[str, str | list[str]]:
    """Read a class map from a JSON file: `{"my class": ["encoder class", ...], ...}`.

    Raises:
        InputError: No such file, or something else in it.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError("too_large", f"class map {path} has more than {MAX_FILE_BYTES} bytes")
        content: Any = json.loads(path.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError("bad_class_map", f"can't read class map {path}: {error}") from error
    if not isinstance(content, dict) or not all(_is_names(value) for value in content.values()):
        raise InputError(
            "bad_class_map", f"{path} must map each class to one class of the encoder or a list"
        )
    return content


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(name, str) for name in value)
    )


def _names(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - N_EXAMPLES} more" if len(names) > N_EXAMPLES else ""
    return ", ".join(repr(name) for name in names[:N_EXAMPLES]) + more
