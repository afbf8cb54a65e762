"""A caption per image: from its class, by a template, or from a file."""

import csv
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from gadc.errors import InputError
from gadc.images.source import examples
from gadc.storage import escape_name
from gadc.subset import Subset

CLASS_TEMPLATE = "{class_name}"
DEFAULT_COLUMN = "text"
"""What the caption is called in `metadata.jsonl` and `metadata.csv` of image folders."""
PATH_COLUMNS = ("path", "id", "file_name")
"""Names of the column that says which image a caption is for, in order of preference."""
READ_ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, csv.Error, pyarrow.ArrowException),
    RecursionError,  # of brackets without end
)


def class_captions(subset: Subset, *, template: str = CLASS_TEMPLATE) -> list[str]:
    """Return a caption made from each image's class.

    Args:
        subset: The images.
        template: A text with `{class_name}`, `{label}` or `{rank}` where these go; `{{` is a brace.

    Raises:
        InputError: `bad_template`: anything else in braces.
    """
    _check_template(template)
    return [
        template.format(class_name=name, label=int(label), rank=int(rank))
        for name, label, rank in zip(subset.class_name, subset.labels, subset.rank, strict=True)
    ]


def file_captions(subset: Subset, path: Path, *, column: str = DEFAULT_COLUMN) -> list[str]:
    """Return each image's caption from a table.

    Args:
        subset: The images.
        path: A .csv, .jsonl or .parquet file. Its column `path`, `id` or `file_name` holds the ids
            of images, as they stand in `subset.parquet`; rows for other images do no harm.
        column: Where the captions are.

    Raises:
        InputError: `bad_captions`: the file can't be read, or says two things of one image;
            `captions_missing`: it says nothing of some.
    """
    found: dict[str, str] = {}
    try:
        for number, row in enumerate(_rows(path)):
            name, caption = _entry(path, number, row, column)
            if found.setdefault(name, caption) != caption:
                raise InputError("bad_captions", f"{path} has two captions for {name!r}; keep one")
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError("bad_captions", f"can't read captions from {path}: {error}") from error
    captions = [found.get(name, found.get(escape_name(name))) for name in subset.paths]
    if missing := [
        name for name, caption in zip(subset.paths, captions, strict=True) if caption is None
    ]:
        raise InputError(
            "captions_missing",
            f"{path} has no caption for {len(missing)} of the {subset.n_images} images: "
            f"{examples(missing)}; add them",
        )
    return [caption for caption in captions if caption is not None]


def check_captions(
    captions: list[str], subset: Subset, *, form: str, has_lines: bool = True
) -> None:
    """Refuse captions that a format can't hold.

    Args:
        captions: One per image.
        subset: The images.
        form: The name of the format, for the error.
        has_lines: Whether a caption may be empty or have several lines.

    Raises:
        InputError: `export_cannot_hold`: names the format and the images.
    """

    def refuse(what: str, bad: list[int]) -> None:
        if bad:
            raise InputError(
                "export_cannot_hold",
                f"--as {form} can't hold {what}: {examples(subset.paths[row] for row in bad)}; "
                "give captions by --caption-template or --caption-file",
            )

    rows = range(len(captions))
    refuse("captions that are not valid Unicode", [r for r in rows if not _is_text(captions[r])])
    if not has_lines:
        refuse("captions of several lines", [r for r in rows if set(captions[r]) & set("\r\n")])
        refuse("empty captions", [r for r in rows if not captions[r].strip()])


def _check_template(template: str) -> None:
    known = {"class_name", "label", "rank"}
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError("bad_template", f"template {template!r}: {error}") from error
    for _, field, spec, conversion in parts:
        if field is not None and (field not in known or spec or conversion):
            raise InputError(
                "bad_template",
                f"template {template!r}: only {{class_name}}, {{label}} and {{rank}} may stand in "
                "braces; double the braces that are text",
            )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    elif suffix == ".csv":
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield from csv.DictReader(text)
    elif suffix == ".jsonl":
        with path.open(encoding="utf-8", errors="surrogateescape") as text:
            yield from (json.loads(line) for line in text if line.strip())
    else:
        raise InputError(
            "bad_captions", f"captions in {path}: the suffix must be .csv, .jsonl or .parquet"
        )


def _entry(path: Path, number: int, row: Any, column: str) -> tuple[str, str]:
    """Return (id, caption) of a row."""
    keys = [name for name in PATH_COLUMNS if isinstance(row, dict) and name in row]
    if not keys or column not in row:
        raise InputError(
            "bad_captions",
            f"row {number} of {path} needs a column {', '.join(PATH_COLUMNS[:-1])} or "
            f"{PATH_COLUMNS[-1]}, and {column!r}; it has {examples(row)}",
        )
    name, caption = row[keys[0]], row[column]
    if not (isinstance(name, str) and isinstance(caption, str)):
        raise InputError("bad_captions", f"row {number} of {path}: id and caption must be text")
    return name, caption


def _is_text(caption: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in caption)
