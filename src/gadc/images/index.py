"""Open any source of images as one kind of index."""

import dataclasses
import os
import stat
from pathlib import Path
from typing import get_args

from gadc.errors import InputError
from gadc.images.folder import ARCHIVE_SUFFIXES, FolderScan, index_folder, scan_folder
from gadc.images.listing import index_list
from gadc.images.parquet import index_parquet
from gadc.images.shards import index_shards
from gadc.images.source import (
    IMAGE_SUFFIXES,
    Excluded,
    ImageIndex,
    Kind,
    LabelChoice,
    OnError,
    Quarantined,
    examples,
    suffix,
)

__all__ = ["Excluded", "ImageIndex", "Kind", "LabelChoice", "OnError", "Quarantined", "open_index"]

PARQUET_SUFFIX = ".parquet"
TAR_SUFFIX = ".tar"
LIST_SUFFIXES = frozenset([".txt", ".lst", ".list", ".paths", ""])


def open_index(
    source: Path | str,
    *,
    labels: LabelChoice = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    follow_outside: bool = False,
    on_error: OnError = "fail",
) -> ImageIndex:
    """Find the images of a source, whatever its layout; no image is decoded.

    Args:
        source: A folder of images (each first-level folder a class, or no folders at all), of
            parquet files or of tar shards; one parquet or tar file; or a text file of paths.
        labels: `auto` takes the labels there are, True demands them, False ignores them.
        image_column: Column of image bytes in parquet files; None looks for it.
        label_column: Column of labels in parquet files; None looks for it.
        follow_outside: Read files that links in a folder point to elsewhere.
        on_error: What to do with a damaged tar shard or an incomplete sample in one: stop, or set
            it aside.

    Raises:
        InputError: The source is missing, unreadable, of an unknown kind, without images
            (`missing_source`, `unreadable_source`, `unknown_source`, `no_images`), or
            contradicts itself.
    """
    _check_choices(labels, on_error)
    source = Path(source)
    is_folder = _is_folder(source)
    kind = suffix(source.name)
    if is_folder:
        scan = scan_folder(source, follow_outside=follow_outside)
        archives, kind = _archives(scan)
        excluded = scan.excluded
    else:
        scan, excluded = None, []
        archives = [(source.name, str(source))]

    columns = {"image_column": image_column, "label_column": label_column}
    if kind == PARQUET_SUFFIX:
        index = index_parquet(source, archives, excluded=excluded, labels=labels, **columns)
    elif any(columns.values()):
        raise InputError("no_columns", f"{source} has no columns to choose from; it's not parquet")
    elif kind == TAR_SUFFIX:
        index = index_shards(source, archives, excluded=excluded, labels=labels, on_error=on_error)
    elif scan is not None:
        return index_folder(scan, labels=labels)
    elif kind in LIST_SUFFIXES:
        return index_list(source, labels=labels)
    else:
        raise _unknown_source(source, kind)
    if scan is not None:
        index = dataclasses.replace(index, quarantined=[*scan.quarantined, *index.quarantined])
    return index


def _check_choices(labels: LabelChoice, on_error: OnError) -> None:
    if labels not in (True, False, "auto"):
        raise InputError("bad_choice", f"labels={labels!r} is not True, False or 'auto'")
    if on_error not in get_args(OnError):
        raise InputError("bad_choice", f"on_error={on_error!r} is not 'fail' or 'quarantine'")


def _is_folder(source: Path) -> bool:
    try:
        mode = os.stat(source).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError("missing_source", f"there is no {source}; check the path") from error
    except OSError as error:
        raise InputError("unreadable_source", f"can't read {source}: {error.strerror}") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise InputError("unknown_source", f"{source} is neither a folder nor a regular file")
    return stat.S_ISDIR(mode)


def _archives(scan: FolderScan) -> tuple[list[tuple[str, str]], str]:
    """Return the archives of a folder and their suffix; none in a folder of images."""
    broken = [item.path for item in scan.quarantined if suffix(item.path) in ARCHIVE_SUFFIXES]
    if scan.images or not (scan.archives or broken):
        return [], ""
    if broken:
        raise InputError("unreadable_source", f"{scan.root}: can't read {examples(broken)}")
    kinds = {suffix(name) for name in scan.archives}
    if len(kinds) > 1:
        raise InputError(
            "mixed_layout",
            f"{scan.root} holds both parquet files and tar shards; give a folder of one kind",
        )
    return [(name, os.path.join(scan.root, name)) for name in scan.archives], kinds.pop()


def _unknown_source(source: Path, kind: str) -> InputError:
    if kind in IMAGE_SUFFIXES:
        return InputError("unknown_source", f"{source} is one image; give the folder it lies in")
    return InputError(
        "unknown_source",
        f"{source} is no known kind of source; give a folder, a .parquet or .tar file (not "
        "compressed), or a .txt file of paths",
    )
