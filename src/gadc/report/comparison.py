"""`comparison.parquet`, the numbers that `gadc compare` wrote, summed up for people."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from gadc.errors import InputError

COMPARISON_NAME = "comparison.parquet"
METADATA_KEY = b"gadc"
SCHEMA_VERSION = 1
TEXT = ("method", "title", "kind", "space", "split", "class_name", "measure", "measure_title")
COLUMNS = (*TEXT, "n_per_class", "seed", "better", "value", "note")
BETTER = ("lower", "higher")

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Cell:
    """One method by one measure, over its seeds.

    Attributes:
        mean: Over the seeds; None where the number is not defined.
        sd: Standard deviation over the seeds; None of a method without randomness.
        n_seeds: How many numbers there are.
        note: Why it is empty, or what to bear in mind.
    """

    mean: float | None
    sd: float | None
    n_seeds: int
    note: str


@dataclass(frozen=True)
class Comparison:
    """All numbers of one comparison.

    Attributes:
        methods: In the order of the file: name, title, kind.
        measures: In the order of the file: name, title, better.
        settings: What numbers can be compared by: number per class, space, split.
        cells: By setting, method and measure: places in the three lists above.
        by_class: How many numbers of single classes the file has besides.
        metadata: Command, data, versions.
    """

    methods: list[dict[str, str]]
    measures: list[dict[str, str]]
    settings: list[dict[str, Any]]
    cells: dict[tuple[int, int, int], Cell]
    by_class: int
    metadata: dict[str, Any]

    @property
    def n_methods(self) -> int:
        """How many methods there are; what they are held against is none."""
        return sum(method["kind"] != "reference" for method in self.methods)


def read_comparison(path: Path) -> Comparison:
    """Read and sum up a comparison.

    Raises:
        InputError: `bad_comparison`: not what `gadc compare` writes.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            metadata = json.loads((file.schema_arrow.metadata or {})[METADATA_KEY])
            if metadata["schema"] != SCHEMA_VERSION:
                raise ValueError(f"schema {metadata['schema']}, this gadc reads {SCHEMA_VERSION}")
            columns = file.read(columns=list(COLUMNS)).to_pydict()
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        if wrong := set(columns["better"]) - set(BETTER):
            raise ValueError(f"better={sorted(wrong)[0]!r} is neither lower nor higher")
        return _summed_up(columns, metadata)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise InputError(
            "bad_comparison", f"{path} is not what `gadc compare` writes ({error}); compare again"
        ) from error


def _summed_up(columns: dict[str, list[Any]], metadata: dict[str, Any]) -> Comparison:
    in_order = zip(*(columns[name] for name in COLUMNS), strict=True)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in in_order]
    whole = [row for row in rows if row["class_name"] == ""]
    methods = _distinct(whole, ("method", "title", "kind"))
    measures = _distinct(whole, ("measure", "measure_title", "better"))
    settings = _distinct(whole, ("n_per_class", "space", "split"))
    values: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for row in whole:
        key = (
            settings[row["n_per_class"], row["space"], row["split"]],
            methods[row["method"], row["title"], row["kind"]],
            measures[row["measure"], row["measure_title"], row["better"]],
        )
        values.setdefault(key, []).append(row)
    return Comparison(
        methods=[{"name": name, "title": title, "kind": kind} for name, title, kind in methods],
        measures=[
            {"name": name, "title": title, "better": better} for name, title, better in measures
        ],
        settings=[
            {"n_per_class": n, "space": space, "split": split} for n, space, split in settings
        ],
        cells={key: _cell(of_key) for key, of_key in values.items()},
        by_class=len(rows) - len(whole),
        metadata=metadata,
    )


def _distinct(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[Key, int]:
    """Number the different values of some columns in the order in which they come."""
    found: dict[Key, int] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), len(found))
    return found


def _cell(rows: list[dict[str, Any]]) -> Cell:
    values = [row["value"] for row in rows if row["value"] is not None]
    notes = list(dict.fromkeys(row["note"] for row in rows if row["note"]))
    return Cell(
        mean=statistics.fmean(values) if values else None,
        sd=statistics.stdev(values) if len(values) > 1 else None,
        n_seeds=len(values),
        note="; ".join(notes),
    )
