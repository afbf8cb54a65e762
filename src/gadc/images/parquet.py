"""Hugging Face parquet files: encoded images in one column, classes in another."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.images.files import Stamp
from gadc.images.row_blocks import (
    PARQUET_ERRORS,
    RowGroup,
    RowReader,
    open_parquet,
    rows_per_block,
)
from gadc.images.source import (
    Excluded,
    ImageIndex,
    LabelChoice,
    encode_labels,
    examples,
    no_images,
)

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABEL_NAMES = ("label", "labels", "class", "class_name", "cls", "target", "category")
"""Names of columns, in order of preference, where the file itself doesn't say which it is."""
HUB_METADATA = b"huggingface"
UNLABELLED = -1
"""What Hugging Face writes where a label is withheld."""


class ImageColumn(NamedTuple):
    """Where the encoded images are."""

    name: str
    leaf: str
    has_paths: bool


@dataclass(frozen=True)
class FileColumns:
    """What is read from one file while indexing it."""

    groups: list[RowGroup]
    image: ImageColumn
    paths: list[str | None]
    labels: list[int | str | None] | None
    class_names: list[str] | None


def index_parquet(
    source: Path,
    files: Sequence[tuple[str, str]],
    *,
    excluded: Sequence[Excluded] = (),
    labels: LabelChoice = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageIndex:
    """Build the index of parquet files; images are left on disk until they are read.

    Args:
        source: What the user named.
        files: (name, path) of each file; rows count on from file to file.
        excluded: Files beside them.
        labels: `auto` takes labels if there are any.
        image_column: Its name; None looks for it.
        label_column: Its name; None looks for it.

    Raises:
        InputError: No rows, a file that is corrupt or disagrees with the others, a column that
            can't be found, or labels that are missing or out of range.
    """
    n_rows = 0
    parts: list[FileColumns] = []
    for name, path in files:
        try:
            part = _read_file(path, n_rows, labels, image_column, label_column)
        except InputError:
            raise
        except PARQUET_ERRORS as error:
            raise InputError("bad_parquet", f"{path} can't be read: {error}") from error
        parts.append(part)
        n_rows += sum(group.n_rows for group in part.groups)
        if (part.image, part.class_names) != (parts[0].image, parts[0].class_names):
            raise InputError(
                "files_disagree",
                f"{name} and {files[0][0]} differ in image column or class names; give one of "
                "them, or a folder of files that belong together",
            )
    if not n_rows:
        raise no_images(source, excluded, ())
    paths = [path for part in parts for path in part.paths]
    if paths and all(paths) and len(set(paths)) == n_rows:
        ids = [path for path in paths if path is not None]
    else:
        ids = [
            f"{name}#{row}"
            for (name, _), part in zip(files, parts, strict=True)
            for row in range(sum(group.n_rows for group in part.groups))
        ]
    class_of, class_names = _join_labels(source, ids, parts, wanted=labels is True)
    reader = RowReader([group for part in parts for group in part.groups], leaf=parts[0].image.leaf)
    return ImageIndex(source, "parquet", ids, class_of, class_names, list(excluded), [], reader)


def _read_file(
    path: str,
    first_row: int,
    labels: LabelChoice,
    image_column: str | None,
    label_column: str | None,
) -> FileColumns:
    stamp = Stamp.of(os.stat(path))
    with open_parquet(path) as file:
        n_rows = file.metadata.num_rows
        if n_rows > stamp.n_bytes:
            raise InputError(
                "bad_parquet", f"{path} declares {n_rows} rows in {stamp.n_bytes} bytes"
            )
        schema = file.schema_arrow
        if len(set(schema.names)) < len(schema.names):
            raise InputError("bad_parquet", f"{path} has several columns of the same name")
        features = _hub_features(schema)
        image = _find_image_column(path, schema, features, image_column)
        paths: list[str | None] = []
        if image.has_paths:
            column = _read_column(file, f"{image.name}.path")
            paths = column.flatten()[0].to_pylist()
        values, class_names = None, None
        name = _find_label_column(path, schema, features, label_column) if labels else None
        if name is not None:
            class_names = _class_names(path, features.get(name, {}))
            values = _read_labels(_read_column(file, name))
        return FileColumns(
            _row_groups(path, stamp, file, image, first_row), image, paths, values, class_names
        )


def _row_groups(
    path: str, stamp: Stamp, file: pq.ParquetFile, image: ImageColumn, first_row: int
) -> list[RowGroup]:
    groups = []
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        chunks = (group.column(index) for index in range(group.num_columns))
        chunk = next((chunk for chunk in chunks if chunk.path_in_schema == image.leaf), None)
        if chunk is None:
            raise OSError(f"row group {number} has no column {image.leaf}")
        n_rows = rows_per_block(
            group.num_rows,
            chunk.total_uncompressed_size,
            has_dictionary=any("DICTIONARY" in encoding for encoding in chunk.encodings),
        )
        if group.num_rows:
            groups.append(RowGroup(path, stamp, number, first_row, group.num_rows, n_rows))
        first_row += group.num_rows
    return groups


def _read_column(file: pq.ParquetFile, name: str) -> pa.Array:
    column = file.read(columns=[name], use_threads=False).column(0)
    if len(column) != file.metadata.num_rows:
        raise OSError(f"column {name} has {len(column)} rows of {file.metadata.num_rows}")
    return column.combine_chunks()


def _hub_features(schema: pa.Schema) -> dict[str, Any]:
    """Return what Hugging Face noted about each column; nothing if the note can't be read."""
    try:
        features = json.loads((schema.metadata or {})[HUB_METADATA])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: note for name, note in features.items() if isinstance(note, dict)}


def _class_names(path: str, feature: dict[str, Any]) -> list[str] | None:
    if feature.get("_type") != "ClassLabel" or not isinstance(feature.get("names"), list):
        return None
    names = [str(name) for name in feature["names"]]
    if len(set(names)) < len(names):
        raise InputError("duplicate_class_names", f"{path} gives two classes the same name")
    return names


def _find_image_column(
    path: str, schema: pa.Schema, features: dict[str, Any], asked: str | None
) -> ImageColumn:
    usable = [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    declared = [name for name in usable if features.get(name, {}).get("_type") == "Image"]
    candidates = (declared, usable)
    name = _choose_column(path, "image", asked, usable, candidates, IMAGE_NAMES)
    if name is None:
        raise InputError(
            "no_image_column",
            f"{path} has no column of image bytes; its columns: {', '.join(schema.names)}",
        )
    kind = schema.field(name).type
    if not pa.types.is_struct(kind):
        return ImageColumn(name, name, has_paths=False)
    index = kind.get_field_index("path")
    has_paths = index >= 0 and _is_text(kind.field(index).type)
    return ImageColumn(name, f"{name}.bytes", has_paths)


def _find_label_column(
    path: str, schema: pa.Schema, features: dict[str, Any], asked: str | None
) -> str | None:
    usable = [name for name in schema.names if _holds_labels(schema.field(name).type)]
    declared = [name for name in usable if _class_names(path, features.get(name, {}))]
    candidates = (declared, [name for name in usable if name.lower() in LABEL_NAMES])
    return _choose_column(path, "label", asked, usable, candidates, LABEL_NAMES)


def _choose_column(
    path: str,
    what: Literal["image", "label"],
    asked: str | None,
    usable: Sequence[str],
    candidates: Sequence[Sequence[str]],
    preferred: Sequence[str],
) -> str | None:
    """Return the column asked for, or else the only or best-named of the first candidates."""
    if asked is not None:
        if asked in usable:
            return asked
        raise InputError(
            f"bad_{what}_column",
            f"{asked!r} is no {what} column of {path}; possible: {', '.join(usable) or 'none'}",
        )
    for names in candidates:
        if len(names) == 1:
            return names[0]
        if best := [name for good in preferred for name in names if name.lower() == good]:
            return best[0]
        if names:
            raise InputError(
                f"ambiguous_{what}_column",
                f"{path} has several {what} columns: {', '.join(names)}; choose one with "
                f"{what}_column",
            )
    return None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _holds_labels(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind))


def _read_labels(column: pa.Array) -> list[int | str | None]:
    if _is_text(column.type):
        return list(column.to_pylist())
    values = column.cast(pa.int64()).to_pylist()
    return [None if value == UNLABELLED else value for value in values]


def _join_labels(
    source: Path, ids: list[str], parts: Sequence[FileColumns], *, wanted: bool
) -> tuple[NDArray[np.int64] | None, list[str]]:
    columns = [part.labels for part in parts]
    values = [value for column in columns if column is not None for value in column]
    known = [value for value in values if value is not None]
    if not known:
        if wanted:
            raise InputError("no_labels", f"{source} has no labels; ask for no labels instead")
        return None, []
    if len(known) < len(ids):
        if len(values) < len(ids):
            raise InputError("missing_label", f"some files of {source} have no label column")
        without = [id for id, value in zip(ids, values, strict=True) if value is None]
        raise InputError(
            "missing_label",
            f"{len(without)} rows of {source} have no label: {examples(without)}; drop them, or "
            "ask for no labels",
        )
    names = parts[0].class_names
    if len({isinstance(value, str) for value in known}) > 1:
        raise InputError("files_disagree", f"some labels of {source} are numbers, others text")
    if names is None or isinstance(known[0], str):
        return encode_labels(known)
    labels = np.array(known, np.int64)
    bad = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if bad.size:
        raise InputError(
            "label_out_of_range",
            f"label {labels[bad[0]]} of {ids[bad[0]]} is not below {len(names)}, the number of "
            f"class names ({bad.size} such rows)",
        )
    return labels, names
