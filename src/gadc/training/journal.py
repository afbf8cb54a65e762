"""The losses of a run, one JSON object a line."""

import json
import os
from pathlib import Path
from typing import Any

from gadc.storage import write_error, write_text

LOSSES_NAME = "losses.jsonl"


class Journal:
    """Appends records; a run that goes on drops those of steps it does again.

    Args:
        path: The file.
        step: Records of later steps are removed.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self._path = path
        kept = [record for record in read_losses(path) if record["step"] <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def append(self, record: dict[str, Any]) -> None:
        """Add a record, safe from a power cut.

        Raises:
            RunError: `disk_full` or `write_failed`.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self._path, error) from error


def read_losses(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run; the half line of a killed one is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records
