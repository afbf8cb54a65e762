"""A text file that lists image files."""

import functools
import os
import stat
from pathlib import Path

import numpy as np

from gadc.errors import InputError
from gadc.images.files import FileReader, Stamp, with_retries
from gadc.images.source import (
    IMAGE_SUFFIXES,
    NO_IMAGE_SUFFIX,
    NOT_REGULAR,
    Excluded,
    ImageIndex,
    LabelChoice,
    Quarantined,
    examples,
    no_images,
    suffix,
)

MAX_LIST_BYTES = 1 << 30


def index_list(source: Path, *, labels: LabelChoice = "auto") -> ImageIndex:
    """Build the index of the files named in `source`, in the order of the list.

    One path a line, or, if the file holds a NUL, one path before each NUL (names may contain
    newlines). Relative paths start at the list's own folder. A list has no labels.

    Raises:
        InputError: Labels asked for, a path named twice, an unreadable list, or no images.
    """
    if labels is True:
        raise InputError("no_labels", f"{source} is a list of paths, which has no labels")
    names = _read_names(source)
    _refuse_duplicates(source, names)
    folder = os.path.dirname(os.path.abspath(source))
    ids: list[str] = []
    stamps: list[Stamp] = []
    excluded: list[Excluded] = []
    quarantined: list[Quarantined] = []
    for name in names:
        if suffix(name) not in IMAGE_SUFFIXES:
            excluded.append(Excluded(name, NO_IMAGE_SUFFIX))
            continue
        try:
            status = with_retries(functools.partial(os.stat, os.path.join(folder, name)))
        except OSError as error:
            quarantined.append(Quarantined(name, "io_error", f"can't be read: {error.strerror}"))
            continue
        if stat.S_ISREG(status.st_mode):
            ids.append(name)
            stamps.append(Stamp.of(status))
        else:
            excluded.append(Excluded(name, NOT_REGULAR))
    if not ids:
        raise no_images(source, excluded, quarantined)
    reader = FileReader(
        folder,
        ids,
        np.array([stamp.n_bytes for stamp in stamps], np.int64),
        np.array([stamp.mtime_ns for stamp in stamps], np.int64),
    )
    return ImageIndex(source, "list", ids, None, [], excluded, quarantined, reader)


def _read_names(source: Path) -> list[str]:
    try:
        if source.stat().st_size > MAX_LIST_BYTES:
            raise InputError(
                "bad_list", f"{source} is longer than {MAX_LIST_BYTES} bytes; split it"
            )
        content = source.read_bytes()
    except OSError as error:
        raise InputError("unreadable_source", f"can't read {source}: {error.strerror}") from error
    if b"\0" in content:
        lines = content.split(b"\0")
    else:
        lines = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    return [os.fsdecode(line) for line in lines if line]


def _refuse_duplicates(source: Path, names: list[str]) -> None:
    seen: set[str] = set()
    twice = []
    for name in names:
        path = os.path.normpath(name)
        if path in seen:
            twice.append(name)
        seen.add(path)
    if twice:
        raise InputError(
            "duplicate_paths", f"{source} names these more than once: {examples(twice)}"
        )
