"""One selection as the templates and the scripts show it."""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.features.rows import SelectedRows
from gadc.portable_names import printable
from gadc.report import facts
from gadc.report.geometry import UNMATCHED_SHARE, ClassGeometry, PoolMap, class_geometry, map_of
from gadc.report.reading import SelectionRun
from gadc.report.thumbnails import Thumbnails
from gadc.report.training import base_name
from gadc.runtime import ProgressStyle, progress

MAX_TILES = 2_000
"""Chosen images shown; of more, the first of each class."""
MAX_UNMATCHED = 120
UNMATCHED_PER_CLASS = 8
CHOSEN_SIDES_PX = ((200, 160), (500, 128), (1_200, 96), (MAX_TILES, 72))
"""Up to so many chosen images, so large: together some 4 MB."""
POOL_SIDE_PX = 56
MAX_LEFT_OUT_ROWS = 200
"""Rows of the table of bad items; the file beside the subset has all."""


@dataclass(eq=False)
class SelectionView:
    """A selection, looked at.

    Attributes:
        run: What was read.
        geometry: Of each class that has chosen images, if there are features.
        plane: The map, if there are features.
        thumbnails: If there are images.
        shown: Places in the subset of the images that get a tile.
    """

    run: SelectionRun
    number: int
    geometry: dict[int, ClassGeometry] = field(default_factory=dict)
    plane: PoolMap | None = None
    thumbnails: Thumbnails | None = None
    shown: list[int] = field(default_factory=list)
    n_ranks_shown: int = 0
    unmatched: list[dict[str, Any]] = field(default_factory=list)


def look_at(
    run: SelectionRun,
    *,
    number: int,
    n_sampled: int,
    budget_bytes: int,
    show: ProgressStyle = "silent",
) -> SelectionView:
    """Compute all that a report shows of a selection.

    Args:
        run: What was read.
        number: Of the run in the report, from 1.
        n_sampled: Images of the pool on the map at most.
        budget_bytes: Of its thumbnails.
        show: See `gadc.runtime.progress`.
    """
    view = SelectionView(run, number)
    subset = run.subset
    n_classes = max(1, len(set(subset.labels.tolist())))
    view.n_ranks_shown = max(1, MAX_TILES // n_classes)
    view.shown = np.flatnonzero(subset.rank < view.n_ranks_shown)[:MAX_TILES].tolist()
    if run.pool is not None:
        config = run.record["config"]
        view.plane = map_of(
            run.pool.features.features,
            subset.index[view.shown],
            n_sampled=n_sampled,
            seed=config["seed"],
        )
        _look_at_classes(view, show)
        view.unmatched = _unmatched(view)
    if run.index is not None:
        view.thumbnails = Thumbnails(run.index, budget_bytes=budget_bytes)
        _make_thumbnails(view, show)
    return view


def _look_at_classes(view: SelectionView, show: ProgressStyle) -> None:
    run = view.run
    assert run.pool is not None  # noqa: S101 - the caller looked
    config, target = run.record["config"], run.record["target"]
    records = {entry["label"]: entry for entry in run.record["classes"]}
    labels = np.unique(run.subset.labels).tolist()
    with progress("report: classes", len(labels), style=show) as bar:
        for label in labels:
            rows = np.sort(run.pool.division.rows[label])
            chosen = run.subset.index[run.subset.labels == label]
            scale = records[label]["scale"]
            found = class_geometry(
                SelectedRows(run.pool.features.features, rows),
                np.searchsorted(rows, chosen),
                scale=scale,
                capacity=config["capacity"],
                epsilon=config["epsilon"] * (scale if config["units"] == "relative" else 1.0),
                has_plan=target is None,
            )
            view.geometry[label] = ClassGeometry(
                neighbours=rows[found.neighbours],
                neighbour_distances=found.neighbour_distances,
                looked_at=rows[found.looked_at],
                unused=found.unused,
                distance=found.distance,
            )
            bar.advance()


def _unmatched(view: SelectionView) -> list[dict[str, Any]]:
    """Return the images that each class's plan uses least, class by class."""
    assert view.run.pool is not None  # noqa: S101 - the caller looked
    names = view.run.pool.division.names
    n_each = max(1, min(UNMATCHED_PER_CLASS, MAX_UNMATCHED // max(1, len(view.geometry))))
    groups = []
    for label, seen in view.geometry.items():
        if seen.unused is None or not seen.is_unmatched.any():
            continue
        order = np.lexsort((-seen.distance, -np.round(seen.unused, 3)))
        order = order[seen.unused[order] > UNMATCHED_SHARE][:n_each]
        groups.append(
            {
                "label": label,
                "name": names[label],
                "n": int(seen.is_unmatched.sum()),
                "n_looked_at": len(seen.looked_at),
                "rows": seen.looked_at[order].tolist(),
                "unused": seen.unused[order].tolist(),
                "distance": seen.distance[order].tolist(),
            }
        )
    return groups[:MAX_UNMATCHED]


def _make_thumbnails(view: SelectionView, show: ProgressStyle) -> None:
    """Make thumbnails, the most important first, until there is no room for more."""
    made = view.thumbnails
    assert made is not None  # noqa: S101 - the caller made it
    subset, n_shown = view.run.subset, len(view.shown)
    side_px = next(side for limit, side in CHOSEN_SIDES_PX if n_shown <= limit)
    pool_rows = [row for group in view.unmatched for row in group["rows"]]
    if view.plane is not None:
        pool_rows += view.plane.rows.tolist()
    pool_rows += neighbours_in_turn(view)
    with progress("report: images", n_shown + len(pool_rows), style=show) as bar:
        for place in view.shown:
            made.get(subset.paths[place], side_px=side_px, sha256=subset.sha256[place])
            bar.advance()
        if view.run.pool is not None:
            ids = view.run.pool.features.ids
            for row in pool_rows:
                made.get(ids[row], side_px=POOL_SIDE_PX)
                bar.advance()


def neighbours_in_turn(view: SelectionView) -> list[int]:
    """Return the nearest neighbour of every chosen image, then the second of every one, and on."""
    columns: dict[int, list[int]] = {}
    for seen in view.geometry.values():
        for place, column in enumerate(seen.neighbours[: view.n_ranks_shown].T):
            columns.setdefault(place, []).extend(column.tolist())
    return [row for place in sorted(columns) for row in columns[place]]


def as_context(view: SelectionView) -> dict[str, Any]:
    """Return what the templates show."""
    run = view.run
    record, subset = run.record, run.subset
    groups = [
        {
            **group,
            "images": [
                {"row": row, "path": _path(view, row), "thumbnail": _thumbnail(view, row)}
                | {"unused": unused, "distance": distance}
                for row, unused, distance in zip(
                    group["rows"], group["unused"], group["distance"], strict=True
                )
            ],
        }
        for group in view.unmatched
    ]
    n_left_out = len(run.quarantine["path"])
    return {
        "number": view.number,
        "folder": os.fspath(run.folder),
        "name": base_name(run.folder),
        "record": record,
        "encoder": facts.encoder_name(record),
        "kind": facts.kind_of_classes(record),
        "numbers": facts.headline_numbers(record),
        "warnings": facts.warnings_of(record, run.remarks, view.thumbnails, len(view.shown)),
        "classes": _class_rows(view),
        "max_rank": int(subset.rank.max()) + 1 if subset.n_images else 1,
        "n_ranks_shown": view.n_ranks_shown,
        "has_images": run.index is not None,
        "has_map": view.plane is not None,
        "n_on_map": 0 if view.plane is None else view.plane.n_pool,
        "unmatched": groups,
        "unmatched_reason": _unmatched_reason(view),
        "quality": facts.quality_rows(record, view.geometry),
        "has_geometry": bool(view.geometry),
        "quarantine": [
            {name: column[row] or "" for name, column in run.quarantine.items()}
            for row in range(min(n_left_out, MAX_LEFT_OUT_ROWS))
        ],
        "n_quarantined": n_left_out,
        "configuration": facts.configuration(record),
        "digests": facts.digests(record, subset.provenance),
        "record_text": facts.record_text(record),
    }


def _class_rows(view: SelectionView) -> list[dict[str, Any]]:
    subset = view.run.subset
    records = {entry["label"]: entry for entry in view.run.record["classes"]}
    found: dict[int, dict[str, Any]] = {}
    for place in view.shown:
        label = int(subset.labels[place])
        entry = records[label]
        scale = entry["scale"] or 1.0
        group = found.setdefault(
            label,
            {
                "label": label,
                "name": subset.class_name[place],
                "n_images": entry["n_images"],
                "n_selected": entry["n_selected"],
                "tiles": [],
            },
        )
        group["tiles"].append(
            {
                "place": place,
                "rank": int(subset.rank[place]),
                "change": _change(-float(subset.gain[place]) / scale, int(subset.rank[place])),
                "path": subset.paths[place],
                "thumbnail": _thumbnail(view, int(subset.index[place])),
            }
        )
    return list(found.values())


def _change(value: float, rank: int) -> str:
    """Return the objective of the first image alone, or what a further one added to it."""
    text = f"{value:+.4f}" if rank else f"{value:.3f}"
    return text.replace("-", "−")


def _thumbnail(view: SelectionView, row: int) -> Any:
    if view.thumbnails is None:
        return None
    return view.thumbnails.made(_path(view, row))


def _path(view: SelectionView, row: int) -> str:
    """Return the id of an image of the pool."""
    if view.run.pool is not None:
        return view.run.pool.features.ids[row]
    return view.run.subset.paths[int(np.flatnonzero(view.run.subset.index == row)[0])]


def _unmatched_reason(view: SelectionView) -> str:
    """Say why no unmatched images are shown, if none are."""
    if view.run.pool is None:
        return "This needs the features that the selection was made from, which can't be read here."
    if view.run.record["target"] is not None:
        return "The subset was matched to another data set, so images of this one need no match."
    if view.run.record["config"]["capacity"] <= 1.0:
        return "At capacity 1 transport is balanced: every image is matched."
    if all(seen.unused is None for seen in view.geometry.values()):
        return (
            "The classes are too large, for so many chosen images, to solve their transport here."
        )
    return "No image is left more than half unmatched."


def as_data(view: SelectionView) -> dict[str, Any]:
    """Return what the scripts show: only numbers and printable text."""
    subset, record = view.run.subset, view.run.record
    neighbours = _neighbours_by_place(view)
    rows = {row for near in neighbours.values() for row, _ in near}
    plane: dict[str, Any] | None = None
    if view.plane is not None:
        plane = _plane_data(view, view.plane)
        rows |= set(view.plane.rows.tolist())
    chosen = set(subset.index[view.shown].tolist())
    return {
        "number": view.number,
        "classes": [printable(entry["class_name"]) for entry in record["classes"]],
        "chosen": [
            {
                "row": int(subset.index[place]),
                "label": int(subset.labels[place]),
                "rank": int(subset.rank[place]),
                "path": printable(subset.paths[place]),
                "sha256": subset.sha256[place],
                "weight": float(subset.weight[place]),
                "gain": float(subset.gain[place])
                / (record["classes"][subset.labels[place]]["scale"] or 1.0),
                "near": neighbours.get(place, []),
            }
            for place in view.shown
        ],
        "images": {
            str(row): _image_data(view, row, has_picture=row not in chosen) for row in sorted(rows)
        },
        "plane": plane,
        "curve": _mean_curve(view),
    }


def _image_data(view: SelectionView, row: int, *, has_picture: bool) -> list[Any]:
    made = _thumbnail(view, row) if has_picture else None
    path = printable(_path(view, row))
    return [path] if made is None else [path, made.base64, made.width, made.height]


def _neighbours_by_place(view: SelectionView) -> dict[int, list[tuple[int, float]]]:
    """Return neighbours and their distances by place in the subset."""
    found = {}
    places_by_class = {
        label: np.flatnonzero(view.run.subset.labels == label).tolist() for label in view.geometry
    }
    shown = set(view.shown)
    for label, seen in view.geometry.items():
        for number, place in enumerate(places_by_class[label]):
            if place not in shown:
                continue
            pairs = zip(seen.neighbours[number], seen.neighbour_distances[number], strict=True)
            found[place] = [(int(row), round(float(distance), 3)) for row, distance in pairs]
    return found


def _plane_data(view: SelectionView, plane: PoolMap) -> dict[str, Any]:
    assert view.run.pool is not None  # noqa: S101 - there is no map without it
    subset = view.run.subset
    n_images = view.run.pool.features.n_images
    rank = np.full(n_images, -1, np.int64)
    rank[subset.index] = subset.rank
    is_unmatched = np.zeros(n_images, np.bool_)
    for seen in view.geometry.values():
        is_unmatched[seen.looked_at[seen.is_unmatched]] = True
    rows: NDArray[np.int64] = plane.rows
    return {
        "row": rows.tolist(),
        "x": [float(f"{value:.4g}") for value in plane.positions[:, 0].tolist()],
        "y": [float(f"{value:.4g}") for value in plane.positions[:, 1].tolist()],
        "label": view.run.pool.division.labels[rows].tolist(),
        "rank": rank[rows].tolist(),
        "unmatched": is_unmatched[rows].astype(int).tolist(),
        "explained": list(plane.explained),
    }


def _mean_curve(view: SelectionView) -> list[float]:
    """Return the objective of the first 1, 2, ... images, the mean of the classes' own units."""
    subset = view.run.subset
    if not subset.n_images:
        return []
    n_ranks = int(subset.rank.max()) + 1
    curves = []
    for label in np.unique(subset.labels).tolist():
        scale = view.run.record["classes"][label]["scale"] or 1.0
        values = -np.cumsum(subset.gain[subset.labels == label]) / scale
        curves.append(np.concatenate([values, np.full(n_ranks - len(values), values[-1])]))
    return [float(f"{value:.6g}") for value in np.mean(curves, axis=0).tolist()]
