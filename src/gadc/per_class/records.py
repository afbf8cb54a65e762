"""Finished classes on disk: a killed run goes on where it stopped."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.per_class.selection import ClassSelection, ClassTask, LazyRows
from gadc.storage import canonical_json, digest, write_json

logger = logging.getLogger(__name__)

RECORD_VERSION = 1
KEY_CHARACTERS = 16
CORRUPT_SUFFIX = ".corrupt"
ROWS_AT_A_TIME = 4096


def record_key(task: ClassTask, ids: Sequence[str], version: str) -> str:
    """Return the digest of all that a selection depends on.

    Args:
        task: What is selected from.
        ids: Names of its rows.
        version: Of gadc.
    """
    return digest(
        {
            "record_version": RECORD_VERSION,
            "gadc": version,
            "torch": str(torch.__version__),
            "device": torch.device(task.device).type,
            "settings": dataclasses.asdict(task.settings),
            "n_selected": task.n_selected,
            "ids": list(ids),
            "features": _array_sha256(task.features),
            "target": _array_sha256(task.target),
            "target_weights": _array_sha256(task.target_weights),
            "confidence_loss": _array_sha256(task.confidence_loss),
            "keep": list(task.keep),
            "exclude": list(task.exclude),
        }
    )


def _array_sha256(array: NDArray[np.floating] | LazyRows | None) -> str | None:
    if array is None:
        return None
    dtype = array.dtype if isinstance(array, np.ndarray) else np.dtype(np.float32)
    sha256 = hashlib.sha256(canonical_json([dtype.str, array.shape]).encode())
    if isinstance(array, np.ndarray):
        sha256.update(np.ascontiguousarray(array).data)
        return sha256.hexdigest()
    for start in range(0, len(array), ROWS_AT_A_TIME):
        sha256.update(np.ascontiguousarray(array[start : start + ROWS_AT_A_TIME]).data)
        array.release()
    return sha256.hexdigest()


class ClassRecords:
    """The folder of finished classes.

    A record's name is the class number and the key of its inputs, so a record of other inputs is
    never taken for this one; those of earlier choices stay, and serve again if they come back.

    Attributes:
        n_corrupt: Records found broken so far; each was set aside as `*.corrupt`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self.n_corrupt = 0

    def load(self, label: int, key: str) -> ClassSelection | None:
        """Return the recorded selection; None if there is none, or none that can be trusted."""
        path = self._path(label, key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            record = json.loads(content)
            claimed = record.pop("digest")
            if digest(record) == claimed and record["key"] == key:
                return ClassSelection(**record["selection"])
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # broken in another way than a changed digit
        self.n_corrupt += 1
        os.replace(path, path.with_name(path.name + CORRUPT_SUFFIX))
        logger.warning("%s is corrupt: set aside, the class is selected again", path)
        return None

    def store(self, label: int, key: str, selection: ClassSelection) -> None:
        """Record a selection."""
        record = {"key": key, "selection": dataclasses.asdict(selection)}
        write_json(self._path(label, key), {**record, "digest": digest(record)})

    def _path(self, label: int, key: str) -> Path:
        return self._folder / f"{label:05d}-{key[:KEY_CHARACTERS]}.json"
