"""The losses of a run, one JSON object a line."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from gadc.errors import RunError
from gadc.storage import write_text

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
            RunError: The disk is full or refuses.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "write_failed"
            raise RunError(
                code, f"could not write {self._path}: {error}; run the same command again"
            ) from error


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
