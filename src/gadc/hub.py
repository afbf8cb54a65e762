"""Selected images as a table that Hugging Face `datasets` takes for its own."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow

from gadc.errors import InputError
from gadc.images.index import open_index
from gadc.images.selected import SelectedImages
from gadc.images.source import ImageIndex, examples
from gadc.storage import escape_name, unescape_name

if TYPE_CHECKING:
    import datasets

Columns = dict[str, list[Any]]
"""Those of `subset.parquet`, see `gadc.subset.Subset.columns`; text in them is escaped."""

METADATA_KEY = b"huggingface"
ROWS_PER_BATCH = 100
"""Images in memory at a time, and in a row group: readers fetch whole groups."""
COLUMNS = {
    "image": pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
    "label": pyarrow.int64(),
    "id": pyarrow.string(),
    "sha256": pyarrow.string(),
    "rank": pyarrow.int32(),
    "gain": pyarrow.float64(),
    "weight": pyarrow.float64(),
}
OF_SUBSET = {
    "label": "label",
    "id": "path",
    "sha256": "sha256",
    "rank": "rank",
    "gain": "gain",
    "weight": "weight",
}
"""Columns that are those of `subset.parquet`."""
CAPTION_COLUMN = "text"
VALUE_NAMES = {"double": "float64"}
"""What `datasets` calls a type of Arrow, where that differs."""
ADDED_COLUMNS = {"rank": np.int32, "gain": np.float64, "weight": np.float64}
"""What the rows of somebody else's dataset get."""


def hub_schema(class_names: Sequence[str], *, has_captions: bool = False) -> pyarrow.Schema:
    """Return the schema, with the features that `datasets` reads from its metadata.

    Args:
        class_names: Name of each label; undecodable bytes are escaped.
        has_captions: Whether there is a column `text`.
    """
    columns = {**COLUMNS, **({CAPTION_COLUMN: pyarrow.string()} if has_captions else {})}
    features: dict[str, Any] = {
        name: {"dtype": VALUE_NAMES.get(str(kind), str(kind)), "_type": "Value"}
        for name, kind in columns.items()
    }
    features["image"] = {"_type": "Image"}
    features["label"] = {
        "names": [escape_name(name) for name in class_names],
        "_type": "ClassLabel",
    }
    note = json.dumps({"info": {"features": features}})
    return pyarrow.schema(columns, metadata={METADATA_KEY: note.encode()})


def hub_batch(
    selected: Columns,
    rows: Sequence[int],
    contents: Sequence[bytes],
    schema: pyarrow.Schema,
    *,
    captions: Sequence[str] | None = None,
) -> pyarrow.RecordBatch:
    """Return some rows of a subset under a schema of `hub_schema`.

    Args:
        selected: The columns of the subset.
        rows: Which.
        contents: The encoded bytes of each image.
        schema: With a column `text` if there are captions.
        captions: One per image of the subset.
    """
    columns = {
        name: [selected[of_subset][row] for row in rows] for name, of_subset in OF_SUBSET.items()
    }
    columns["image"] = [
        {"bytes": content, "path": path}
        for content, path in zip(contents, columns["id"], strict=True)
    ]
    if captions is not None:
        columns[CAPTION_COLUMN] = [captions[row] for row in rows]
    return pyarrow.RecordBatch.from_pydict(columns, schema=schema)


def dataset_of_images(
    selected: Columns, class_names: Sequence[str], source: Path | str | ImageIndex
) -> "datasets.Dataset":
    """Return a dataset in memory of the images of a subset; see `Subset.to_hf`."""
    import datasets

    if not isinstance(source, ImageIndex):
        source = open_index(Path(source), labels=False, on_error="quarantine")
    ids = [unescape_name(path) for path in selected["path"]]
    images = SelectedImages(source, ids, selected["sha256"])
    schema = hub_schema(class_names)
    batches = []
    for start in range(0, len(ids), ROWS_PER_BATCH):
        rows = range(start, min(start + ROWS_PER_BATCH, len(ids)))
        contents = [content for row in rows if (content := images.read(row)) is not None]
        if not images.changed:
            batches.append(hub_batch(selected, rows, contents, schema))
    images.raise_if_changed()
    table = pyarrow.Table.from_batches(batches, schema=schema)
    return datasets.Dataset(datasets.table.InMemoryTable(table))


def rows_of_dataset(
    selected: Columns, counts: dict[str, Any], pool: "datasets.Dataset"
) -> "datasets.Dataset":
    """Return the selected rows of the dataset that was selected from; see `Subset.to_hf`.

    Args:
        selected: The columns of the subset.
        counts: Its provenance: how many images there were to select from.
        pool: The dataset.
    """
    if not len(pool) == counts["n_pool"] == counts["n_scanned"]:
        raise InputError(
            "source_mismatch",
            f"the dataset has {len(pool)} rows, while {counts['n_pool']} of {counts['n_scanned']} "
            "images were selected from, so row numbers differ; give the folder or file of the "
            "images instead",
        )
    if taken := [name for name in ADDED_COLUMNS if name in pool.column_names]:
        raise InputError(
            "column_exists",
            f"the dataset has columns {examples(taken)} already; rename them first (rename_column)",
        )
    chosen: datasets.Dataset = pool.select(selected["index"])
    _check_bytes(selected, chosen)
    for name, kind in ADDED_COLUMNS.items():
        chosen = chosen.add_column(name, np.array(selected[name], kind))
    return chosen


def _check_bytes(selected: Columns, chosen: "datasets.Dataset") -> None:
    """Compare the bytes of images with their digests, where both are at hand."""
    import datasets

    columns = [name for name, kind in chosen.features.items() if isinstance(kind, datasets.Image)]
    if len(columns) != 1:
        return
    encoded = chosen.select_columns(columns).cast_column(columns[0], datasets.Image(decode=False))
    changed = []
    for row, item in enumerate(encoded):
        content, expected = item[columns[0]]["bytes"], selected["sha256"][row]
        if content is None or expected is None:
            continue
        if hashlib.sha256(content).hexdigest() != expected:
            changed.append(selected["path"][row])
    if changed:
        raise InputError(
            "source_changed",
            f"{len(changed)} images are not the ones that were selected: {examples(changed)}; "
            "give the dataset that was selected from",
        )
