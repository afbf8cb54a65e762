"""From the numbers of cells to the table: means over seeds, and differences to random selection."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import gadc
from gadc.comparison.methods import COMPARED, FULL, RANDOM

REAL_TITLE = "Real images"
SHOWN = {
    "fid": "FID",
    "frechet": "Fréchet",
    "sfid": "sFID",
    "inception-score": "IS",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "class-agreement": "agreement",
    "near-copies": "near copies",
    "closer-to-training": "closer to training",
}
"""Measures in the order of tables, with their short titles."""

Numbers = list[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """The numbers of one cell, and where they stand.

    Attributes:
        method: Its name; `full` for real images.
        n_per_class: The budget.
        seed: Of training and sampling; None for real images.
        space: Judging encoder, with model and length where there are several.
        split: What it is judged by.
        scores: The numbers.
    """

    method: str
    n_per_class: int
    seed: int | None
    space: str
    split: str
    scores: Numbers


@dataclass(frozen=True)
class ShownTable:
    """A table as people read it.

    Attributes:
        n_per_class: The budget.
        space: Judging encoder, with model and length where there are several.
        split: What it is judged by.
        heads: Of the columns.
        lines: A method each.
    """

    n_per_class: int
    space: str
    split: str
    heads: list[str]
    lines: list[list[str]]


def long_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a row for each number, as `comparison.parquet` holds it."""
    return [
        {
            **_who(row.method),
            "n_per_class": row.n_per_class,
            "seed": row.seed,
            "space": row.space,
            "split": row.split,
            "class_name": "",
            "measure": score["name"],
            "measure_title": score["title"],
            "better": score["better"],
            "value": score["value"],
            "note": score["note"],
        }
        for row in rows
        for score in row.scores
    ]


def aggregated(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the table: mean and deviation over seeds, and paired differences to random selection.

    A seed gives random selection and every other method the same weights at the start, the same
    stream of noise in training and the same noise in sampling; so differences are taken within
    seeds. `difference` is the method minus random: its mean, its deviation (n - 1; None for one
    seed), and in how many seeds the method is better and worse.
    """
    values: dict[tuple[Any, ...], dict[int | None, float | None]] = {}
    about: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in long_rows(rows):
        key = tuple(row[name] for name in ("n_per_class", "space", "split", "method", "measure"))
        values.setdefault(key, {})[row["seed"]] = row["value"]
        first = about.setdefault(key, {**row, "notes": []})
        first["notes"].append(row["note"])
    found = []
    for key, by_seed in values.items():
        *place, method, measure = key
        chance = values.get((*place, RANDOM, measure), {})
        row = about[key]
        defined = [value for value in by_seed.values() if value is not None]
        is_whole = len(defined) == len(by_seed)
        shown = ("method", "title", "kind", "n_per_class", "space", "split", "measure")
        found.append(
            {
                **{name: row[name] for name in (*shown, "measure_title", "better")},
                "mean": float(np.mean(defined)) if is_whole else None,
                "sd": _sd(defined) if is_whole else None,
                "n_seeds": len(by_seed),
                "note": "; ".join(dict.fromkeys(note for note in row["notes"] if note)),
                "difference": None
                if method in (RANDOM, FULL)
                else difference(by_seed, chance, row["better"]),
            }
        )
    return found


def difference(
    values: dict[int | None, float | None], chance: dict[int | None, float | None], better: str
) -> dict[str, Any] | None:
    """Return a method's numbers minus random selection's, within seeds; None if no seed has both.

    Args:
        values: Of the method, by seed.
        chance: Of random selection, by seed.
        better: `lower` or `higher`.
    """
    pairs = [
        own - by_chance
        for seed, own in values.items()
        if own is not None and (by_chance := chance.get(seed)) is not None
    ]
    if not pairs:
        return None
    sign = 1.0 if better == "higher" else -1.0
    return {
        "mean": float(np.mean(pairs)),
        "sd": _sd(pairs),
        "better": sum(sign * pair > 0.0 for pair in pairs),
        "worse": sum(sign * pair < 0.0 for pair in pairs),
        "n_seeds": len(pairs),
    }


def shown_tables(table: Sequence[dict[str, Any]]) -> list[ShownTable]:
    """Return what people read: a table for each budget, space and split."""
    found = []
    for setting in dict.fromkeys((r["n_per_class"], r["space"], r["split"]) for r in table):
        rows = [r for r in table if (r["n_per_class"], r["space"], r["split"]) == setting]
        measures = [name for name in SHOWN if any(row["measure"] == name for row in rows)]
        main = measures[0]
        cells = {(row["method"], row["measure"]): row for row in rows}
        titles = {row["method"]: row["title"] for row in rows}
        arrows = {row["measure"]: "↓" if row["better"] == "lower" else "↑" for row in rows}
        heads = ["method", *(f"{SHOWN[name]} {arrows[name]}" for name in measures)]
        lines = [
            [
                title,
                *(number(cells.get((method, name))) for name in measures),
                *against_random(cells.get((method, main))),
            ]
            for method, title in titles.items()
        ]
        heads += [f"{SHOWN[main]} minus random", "better in"]
        found.append(ShownTable(*setting, heads, lines))
    return found


def as_markdown(table: Sequence[dict[str, Any]]) -> str:
    """Return a table for each budget and space, for documents."""
    parts = []
    for shown in shown_tables(table):
        title = f"{shown.n_per_class} per class, {shown.space}, against {shown.split} images"
        lines = [title, "", f"| {' | '.join(shown.heads)} |", f"|{'---|' * len(shown.heads)}"]
        parts.append("\n".join([*lines, *(f"| {' | '.join(line)} |" for line in shown.lines)]))
    return "\n\n".join(parts) + "\n"


def number(row: dict[str, Any] | None) -> str:
    """Return a mean and its deviation as people read them."""
    if row is None or row["mean"] is None:
        return ""
    mean, sd = row["mean"], row["sd"]
    n_digits = 1 if abs(mean) >= 10 else 2 if abs(mean) >= 1 else 3
    text = f"{mean:.{n_digits}f}"
    return text if sd is None else f"{text} ± {sd:.{n_digits}f}"


def against_random(row: dict[str, Any] | None) -> list[str]:
    """Return the difference to random selection, and in how many seeds it is a gain."""
    found = None if row is None else row["difference"]
    if found is None:
        return ["", ""]
    sd = "" if found["sd"] is None else f" ± {found['sd']:.2f}"
    return [f"{found['mean']:+.2f}{sd}", f"{found['better']} of {found['n_seeds']}"]


def versions() -> dict[str, str]:
    """Return the versions that the numbers come from."""
    return {
        "gadc": gadc.__version__,
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _who(method: str) -> dict[str, str]:
    if method == FULL:
        return {"method": FULL, "title": REAL_TITLE, "kind": "reference"}
    known = COMPARED[method]
    return {"method": method, "title": known.title, "kind": known.kind}


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
