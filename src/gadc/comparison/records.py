"""Finished runs of methods on disk: a killed comparison goes on where it stopped."""

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

from gadc.comparison.judge import Score
from gadc.comparison.work import Selected, Unit
from gadc.storage import digest, write_json

logger = logging.getLogger(__name__)

RECORD_VERSION = 1
KEY_CHARACTERS = 16
CORRUPT_SUFFIX = ".corrupt"
NO_SEED = "once"


class RunRecords:
    """A file for every method, budget and seed: what was selected, and how it was judged.

    Its name holds the key of all that the selection depends on; inside stands the key of all that
    the judgement depends on. So another judge judges again, and selects nothing again.

    Args:
        folder: Where the files are.
        selection_key: Digest of data, settings and versions.
        judgement_key: Digest of spaces, held-out images and measures.

    Attributes:
        n_corrupt: Files found broken so far; each was set aside as `*.corrupt`.
    """

    def __init__(self, folder: Path, *, selection_key: str, judgement_key: str) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._selection_key, self._judgement_key = selection_key, judgement_key
        self.n_corrupt = 0

    def load(self, unit: Unit) -> tuple[Selected | None, list[Score] | None]:
        """Return what was selected, and the scores; None for what is not known."""
        path = self._path(unit)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None, None
        try:
            record = json.loads(content)
            claimed = record.pop("digest")
            if digest(record) != claimed or record["selection_key"] != self._selection_key:
                raise ValueError("not what was written")
            selected = Selected(**record["selected"])
            if record["judgement_key"] != self._judgement_key:
                return selected, None
            return selected, [Score(*score) for score in record["scores"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            self.n_corrupt += 1
            os.replace(path, path.with_name(path.name + CORRUPT_SUFFIX))
            logger.warning("%s is corrupt: set aside, the method runs again", path)
            return None, None

    def store(self, unit: Unit, selected: Selected, scores: list[Score]) -> None:
        """Record a run."""
        record: dict[str, Any] = {
            "record_version": RECORD_VERSION,
            "unit": dataclasses.asdict(unit),
            "selection_key": self._selection_key,
            "judgement_key": self._judgement_key,
            "selected": dataclasses.asdict(selected),
            "scores": [list(dataclasses.astuple(score)) for score in scores],
        }
        write_json(self._path(unit), {**record, "digest": digest(record)})

    def _path(self, unit: Unit) -> Path:
        seed = NO_SEED if unit.seed is None else f"seed{unit.seed}"
        key = self._selection_key[:KEY_CHARACTERS]
        return self._folder / f"{unit.method}-{unit.n_per_class}-{seed}-{key}.json"
