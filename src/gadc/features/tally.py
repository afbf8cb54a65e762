"""What became of each image of a run, and whether too many are bad."""

from typing import Literal

import numpy as np

from gadc.errors import InputError
from gadc.features.computing import Seen
from gadc.features.parts import DIGEST_BYTES
from gadc.images.source import ImageIndex, Quarantined

OnError = Literal["quarantine", "fail"]
MAX_BAD_IN_CLASS = 0.05
FEW_BAD = 20
"""So many bad images never stop a run: in a small folder they are soon more than a percentage."""


class Tally:
    """Collects what became of each image, in any order, and stops a run with too many bad ones.

    Attributes:
        digests: SHA-256 of each image [n, 32]; zeros where it could not be read.
    """

    def __init__(self, index: ImageIndex, max_bad: float, on_error: OnError) -> None:
        self.digests = np.zeros((len(index), DIGEST_BYTES), dtype=np.uint8)
        self._bad: dict[int, Quarantined] = {}
        self._index, self._max_bad, self._on_error = index, max_bad, on_error
        n_classes = len(index.class_names)
        self._n_bad = np.zeros(n_classes, dtype=np.int64)
        self._n_in_class = (
            np.zeros(n_classes, dtype=np.int64)
            if index.labels is None
            else np.bincount(index.labels, minlength=n_classes)
        )
        for item in index.quarantined:
            self._check(item)

    @property
    def bad_positions(self) -> list[int]:
        """The images in quarantine, ascending."""
        return sorted(self._bad)

    @property
    def quarantined(self) -> list[Quarantined]:
        """Bad items: those of the scan, then images in their order."""
        return [*self._index.quarantined, *(self._bad[position] for position in sorted(self._bad))]

    def add(self, seen: Seen) -> None:
        """Count one image; a bad one goes into quarantine."""
        position, error = seen.position, seen.error
        if seen.digest is not None:
            self.digests[position] = np.frombuffer(seen.digest, dtype=np.uint8)
        if error is None:
            return
        sha256 = seen.digest.hex() if seen.digest else None
        item = Quarantined(self._index.ids[position], error.code, error.message, sha256)
        self._bad[position] = item
        self._check(item)
        if self._index.labels is not None:
            label = int(self._index.labels[position])
            self._n_bad[label] += 1
            self._check_class(label, item)

    def _check(self, item: Quarantined) -> None:
        if self._on_error == "fail":
            raise InputError(
                "bad_image", f"{item.path}: {item.code}: {item.message}; remove or repair it"
            )
        n_candidates = len(self._index) + len(self._index.quarantined)
        n_bad = len(self._index.quarantined) + len(self._bad)
        if n_bad > max(FEW_BAD, self._max_bad * n_candidates):
            raise _too_many(n_bad, n_candidates, "images", self._max_bad, item)

    def _check_class(self, label: int, item: Quarantined) -> None:
        limit = max(MAX_BAD_IN_CLASS, self._max_bad)
        n_bad, n_all = int(self._n_bad[label]), int(self._n_in_class[label])
        if n_bad > max(FEW_BAD, limit * n_all):
            where = f"images of class {self._index.class_names[label]!r}"
            raise _too_many(n_bad, n_all, where, limit, item)


def _too_many(n_bad: int, n_all: int, where: str, limit: float, last: Quarantined) -> InputError:
    return InputError(
        "too_many_bad",
        f"at least {n_bad} of {n_all} {where} are bad, more than {limit:.1%}; the last: "
        f"{last.path}: {last.code}: {last.message}. Repair them, or raise max_bad "
        f"(what is computed is kept)",
    )
