"""`run.json`: what a selection was asked for, what came out, and where its images are."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gadc.errors import InputError
from gadc.images.index import open_index
from gadc.images.source import ImageIndex
from gadc.storage import file_sha256
from gadc.subset import SUBSET_NAME

RECORD_NAME = "run.json"
SCHEMA_VERSION = 1
MAX_RECORD_BYTES = 1 << 30
SECTIONS: dict[str, type | tuple[type, ...]] = {
    "classes": list,
    "config": dict,
    "data": str,
    "files": dict,
    "images": (dict, type(None)),
    "pool": dict,
}
"""What every record has, and of which type."""


@dataclass(frozen=True)
class ImageSource:
    """Where images are, and how to find them again under the same ids.

    Attributes:
        path: The folder or file.
        image_column: See `gadc.images.index.open_index`.
        follow_outside: See there.
    """

    path: Path
    image_column: str | None = None
    follow_outside: bool = False

    def index(self) -> ImageIndex:
        """Find the images; classes don't matter, and bad files are none of the selected."""
        return open_index(
            self.path,
            labels=False,
            image_column=self.image_column,
            follow_outside=self.follow_outside,
            on_error="quarantine",
        )

    def as_json(self) -> dict[str, Any]:
        """Return what `run.json` holds."""
        return {
            "path": os.path.abspath(self.path),
            "image_column": self.image_column,
            "follow_outside": self.follow_outside,
        }


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read `run.json`; None if there is none.

    Raises:
        InputError: It is no record of a selection.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise ValueError("too large")
        record: dict[str, Any] = json.loads(path.read_bytes())
        if record["schema"] != SCHEMA_VERSION:
            raise ValueError(f"schema {record['schema']}, this gadc reads {SCHEMA_VERSION}")
        for name, kind in SECTIONS.items():
            if not isinstance(record[name], kind):
                raise ValueError(f"{name} is {type(record[name]).__name__}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "bad_record", f"{path} is no record of a selection ({error}); select again"
        ) from error
    return record


def image_source(subset: Path, given: Path | None) -> ImageSource | None:
    """Find out where the images of a subset are.

    Args:
        subset: The subset's file or folder; a `run.json` beside it knows.
        given: What the user says; comes first.

    Returns:
        None if nobody says.

    Raises:
        InputError: `bad_record`; `subset_of_other_run`: the `run.json` is of another subset.
    """
    folder, file = (subset, subset / SUBSET_NAME) if subset.is_dir() else (subset.parent, subset)
    record = read_record(folder)
    is_known = (
        record is None
        or not file.is_file()
        or file_sha256(file) == record["files"].get(SUBSET_NAME)
    )
    if not is_known:
        raise InputError(
            "subset_of_other_run",
            f"{folder / RECORD_NAME} is not of {file}: that was copied there, or a later "
            "selection has not finished; run `gadc select` again, or move the subset to a "
            "folder of its own and give --source DATA",
        )
    found = None if record is None else record["images"]
    if given is None:
        return (
            None
            if found is None
            else ImageSource(Path(found["path"]), found["image_column"], found["follow_outside"])
        )
    if found is None:
        return ImageSource(given)
    return ImageSource(given, found["image_column"], found["follow_outside"])


def needed(source: ImageSource | None) -> ImageSource:
    """Return what `image_source` found.

    Raises:
        InputError: `source_unknown`: it found nothing.
    """
    if source is None:
        raise InputError(
            "source_unknown", "the subset doesn't say where its images are; give --source DATA"
        )
    return source
