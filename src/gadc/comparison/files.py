"""`comparison.parquet` and `comparison.json`, which `gadc report` and scripts read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from gadc.storage import write_atomically, write_json

SCHEMA_VERSION = 1
PARQUET_NAME = "comparison.parquet"
JSON_NAME = "comparison.json"
METADATA_KEY = b"gadc"

SCHEMA = pyarrow.schema(
    [
        ("method", pyarrow.string()),
        ("title", pyarrow.string()),
        ("kind", pyarrow.string()),
        ("n_per_class", pyarrow.int64()),
        ("seed", pyarrow.int64()),
        ("space", pyarrow.string()),
        ("split", pyarrow.string()),
        ("class_name", pyarrow.string()),
        ("measure", pyarrow.string()),
        ("measure_title", pyarrow.string()),
        ("better", pyarrow.string()),
        ("value", pyarrow.float64()),
        ("note", pyarrow.string()),
    ]
)


def write_long(path: Path, rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> None:
    """Write every number as a row, with what the comparison was as the file's metadata.

    Args:
        path: The file.
        rows: With the columns of `SCHEMA`.
        about: `command`, `data` and `versions`.
    """
    metadata = {METADATA_KEY: json.dumps({"schema": SCHEMA_VERSION, **about}).encode()}
    table = pyarrow.Table.from_pylist(list(rows), schema=SCHEMA.with_metadata(metadata))

    def write(temporary: Path) -> None:
        pyarrow.parquet.write_table(table, temporary, compression="zstd", write_page_checksum=True)

    write_atomically(path, write)


def write_summary(path: Path, result: dict[str, Any]) -> None:
    """Write the aggregated table, and all that was asked for."""
    write_json(path, result)
