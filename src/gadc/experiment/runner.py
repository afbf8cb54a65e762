"""A whole experiment: from a protocol to a table, going on where it stopped."""

import itertools
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.comparison.files import PARQUET_NAME, write_long
from gadc.comparison.methods import FULL, Compared, chosen_methods
from gadc.comparison.problem import Comparison, Problem, pose
from gadc.comparison.run import possible_methods
from gadc.comparison.work import Unit
from gadc.errors import InputError, RunError
from gadc.experiment.attaching import ConditionsFile, attach_conditions
from gadc.experiment.cells import Cell, judge_real
from gadc.experiment.children import run_cells, start_server
from gadc.experiment.data import KEY_CHARACTERS, Images, find_images
from gadc.experiment.judging import Judge, describe, prepare_judge
from gadc.experiment.protocol import HELD_OUT, Protocol
from gadc.experiment.selecting import Chosen, select_subsets, units_of
from gadc.experiment.table import Row, aggregated, as_markdown, long_rows, versions
from gadc.features.extract import extract
from gadc.forks import on_cores
from gadc.images.decode import decode
from gadc.images.faults import ImageError
from gadc.images.index import open_index
from gadc.runs.selection import Request
from gadc.runtime import ProgressStyle, progress
from gadc.sampling.generate import IMAGES_FOLDER
from gadc.sampling.generate import RECORD_NAME as SAMPLES_NAME
from gadc.sampling.pictures import WHITE, grid, png_bytes
from gadc.storage import (
    digest,
    exclusive,
    prepare_output,
    write_bytes,
    write_json,
    write_text,
)
from gadc.training.images import images_of_subset

logger = logging.getLogger(__name__)

RESULT_NAME, TABLE_NAME, SHEET_NAME = "experiment.json", "table.md", "samples.png"
FEATURES_FOLDER, SUBSETS_FOLDER, REAL_FOLDER = "features", "subsets", "scores-of-real-images"
SCHEMA_VERSION = 1
SHEET_COLUMNS = 20
SHEET_SIDE_PX = 32
"""Smaller images are enlarged to it, in whole steps."""


def run_experiment(
    protocol: Protocol,
    out: Path,
    *,
    n_workers: int = 1,
    device: str = "auto",
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> dict[str, Any]:
    """Select, train, sample and judge for every cell of a protocol, and write the table.

    Every stage is kept under a digest of all that it depends on. The same call goes on where an
    earlier one stopped; a changed protocol does again what the change concerns.

    Args:
        protocol: What to compare.
        out: The folder for everything.
        n_workers: Cells at the same time, one thread each; on a GPU 1.
        device: `auto` or `cpu`.
        wait_seconds: How long to wait for another process that uses the folder.
        show: See `gadc.runtime.progress`.

    Returns:
        The contents of `experiment.json`.

    Raises:
        InputError: Something that the protocol names can't be used.
        RunError: A stage failed; what is done is kept.
    """
    prepare_output(out)
    with exclusive(out, wait_seconds=wait_seconds):
        began = time.monotonic()
        start_server()
        images = find_images(protocol.data, out)
        problem, asked = _pose(protocol, images, out, device, show)
        methods, left_out = possible_methods(chosen_methods(protocol.methods), problem, asked)
        resolution_px = protocol.train_config(protocol.models[0], steps=1, seed=0).resolution_px
        judge = prepare_judge(
            protocol.judge, images, out, resolution_px=resolution_px, device=device, show=show
        )
        units = units_of(methods, protocol.per_class, protocol.seeds)
        chosen = select_subsets(
            problem, images.index, units, out / SUBSETS_FOLDER, n_workers=n_workers, show=show
        )
        conditions = attach_conditions(protocol, chosen, images.index, device=device, show=show)
        cells = _cells(protocol, methods, chosen, conditions, images, judge, out, device)
        n_run = _run(list(cells.values()), n_workers, show)
        rows = [_row(place, cell, protocol, judge) for place, cell in cells.items()]
        rows += _real_rows(protocol, rows, judge, images, out, device, show)
        result = _result(protocol, rows, left_out, describe(judge, images), cells, out)
        result["counts"] = {"cells": len(cells), "run": n_run}
        result["seconds"] = round(time.monotonic() - began, 1)
        _write(result, rows, protocol, cells, problem, out)
    return result


Place = tuple[str, str, int, int, str]
"""Model, length, budget, seed and method."""


def _pose(
    protocol: Protocol, images: Images, out: Path, device: str, show: ProgressStyle
) -> tuple[Problem, Comparison]:
    """Compute the features to select by, and all else that every method is given."""
    part = protocol.data
    settings = part.image_settings(device)
    data, features = images.source, None if part.features is None else Path(part.features)
    if features is None:
        data = out / FEATURES_FOLDER
        extract(images.pool, settings.load_encoder(), data, show=show)
    request = Request(data, out, protocol.select_config(), settings, features=features)
    asked = Comparison(
        request, methods=tuple(protocol.methods), per_class=tuple(protocol.per_class)
    )
    return pose(asked, show=show), asked


def _cells(
    protocol: Protocol,
    methods: Sequence[Compared],
    chosen: dict[Unit, Chosen],
    conditions: dict[Unit, ConditionsFile],
    images: Images,
    judge: Judge,
    out: Path,
    device: str,
) -> dict[Place, Cell]:
    """Return every cell by its place; only the subset in it depends on the method."""
    keys = {
        unit: images_of_subset(found.subset, images.index).fingerprint
        for unit, found in chosen.items()
    }
    cells = {}
    for model, length, n, seed, method in itertools.product(
        protocol.models, protocol.lengths, protocol.per_class, protocol.seeds, methods
    ):
        unit = Unit(method.name, n, seed if method.is_random else None)
        train = protocol.train_config(model, steps=1, seed=seed)
        steps = length.steps_of(chosen[unit].subset.n_images, train.batch_size)
        cells[model, length.title, n, seed, method.name] = Cell(
            title=f"{method.name}, {n} per class, seed {seed}, {model}, {length.title}",
            out=out,
            data=protocol.data,
            subset=chosen[unit].folder,
            subset_key=keys[unit],
            conditions=conditions[unit].path if unit in conditions else None,
            conditions_key=conditions[unit].key if unit in conditions else None,
            train=protocol.train_config(model, steps=steps, seed=seed),
            sample=protocol.sample_config(seed=seed),
            judge=judge,
            device=device,
        )
    return cells


def _run(cells: Sequence[Cell], n_workers: int, show: ProgressStyle) -> int:
    """Run what is not done, each stage once; return how many cells that took."""
    waiting: dict[str, Cell] = {}
    for cell in cells:
        if cell.scores() is None:
            waiting.setdefault(cell.score_key, cell)
    with progress("experiment", len(waiting), style=show) as bar:
        run_cells(
            list(waiting.values()), lambda _cell: bar.advance(), n_workers=n_workers, show=show
        )
    return len(waiting)


def _space(protocol: Protocol, judge: Judge, model: str, length: str) -> str:
    """Return what tables call a setting: only what differs within the protocol."""
    parts = [judge.part.encoder]
    parts += [model] if len(protocol.models) > 1 else []
    parts += [length] if len(protocol.lengths) > 1 else []
    return ", ".join(parts)


def _row(place: Place, cell: Cell, protocol: Protocol, judge: Judge) -> Row:
    model, length, n_per_class, seed, method = place
    scores = cell.scores()
    if scores is None:
        raise RunError("corrupt", f"{cell.scores_folder} has changed; run the same command again")
    space = _space(protocol, judge, model, length)
    return Row(method, n_per_class, seed, space, judge.split, scores)


def _real_rows(
    protocol: Protocol,
    rows: Sequence[Row],
    judge: Judge,
    images: Images,
    out: Path,
    device: str,
    show: ProgressStyle,
) -> list[Row]:
    """Return what real images score, in every table; nothing where they are the reference."""
    if judge.part.real != HELD_OUT:
        return []
    n_images = protocol.sample_config(seed=0).n_samples
    folder = out / REAL_FOLDER / judge.key[:KEY_CHARACTERS]
    with on_cores(1):
        scores = judge_real(judge, images, folder, n_images=n_images, device=device, show=show)
    places = dict.fromkeys((row.n_per_class, row.space, row.split) for row in rows)
    return [Row(FULL, n, None, space, split, scores) for n, space, split in places]


def _result(
    protocol: Protocol,
    rows: Sequence[Row],
    left_out: dict[str, str],
    judge: dict[str, Any],
    cells: dict[Place, Cell],
    out: Path,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA_VERSION,
        "out": str(out),
        "protocol": protocol.model_dump(mode="json"),
        "protocol_sha256": protocol.sha256,
        "judge": judge,
        "left_out": left_out,
        "table": aggregated(rows),
        "runs": [_described(place, cell) for place, cell in cells.items()],
        "versions": versions(),
    }


def _described(place: Place, cell: Cell) -> dict[str, Any]:
    """Return what a cell was made with: digests show that only subsets differ."""
    model, length, n_per_class, seed, method = place
    return {
        "model": model,
        "length": length,
        "n_per_class": n_per_class,
        "seed": seed,
        "method": method,
        "steps": cell.train.steps,
        "train_sha256": digest(cell.train.model_dump(mode="json")),
        "sample_sha256": digest(cell.sample.model_dump(mode="json")),
        "is_conditioned": cell.conditions is not None,
        "judge_sha256": cell.judge.key,
        "subset_sha256": cell.subset_key,
        "subset": cell.subset.name,
        "run": cell.run_folder.name,
        "samples": cell.samples_folder.name,
        "scores": cell.scores_folder.name,
    }


def _write(
    result: dict[str, Any],
    rows: Sequence[Row],
    protocol: Protocol,
    cells: dict[Place, Cell],
    problem: Problem,
    out: Path,
) -> None:
    """Write the files for people, for `gadc report` and for scripts, the last one last."""
    about = {
        "command": {"experiment": result["protocol"]},
        "data": {**problem.about, "judge": result["judge"]},
        "versions": result["versions"],
    }
    write_long(out / PARQUET_NAME, long_rows(rows), about)
    write_text(out / TABLE_NAME, as_markdown(result["table"]))
    first = [
        cell
        for place, cell in cells.items()
        if place[:4]
        == (
            protocol.models[0],
            protocol.lengths[0].title,
            protocol.per_class[0],
            protocol.seeds[0],
        )
    ]
    write_bytes(out / SHEET_NAME, png_bytes(samples_sheet(first)))
    write_json(out / RESULT_NAME, result)


def samples_sheet(cells: Sequence[Cell]) -> NDArray[np.uint8]:
    """Draw the first samples of each cell, a row each, all from the same noise.

    Raises:
        RunError: `corrupt`: samples of a cell that was judged before are gone or damaged.
    """
    images: list[NDArray[np.uint8]] = []
    for cell in cells:
        try:
            images += _first_samples(cell.samples_folder)
        except (InputError, ImageError, OSError, ValueError, KeyError, IndexError) as error:
            raise RunError(
                "corrupt",
                f"{cell.samples_folder} is not what was written ({error}); remove "
                f"{cell.scores_folder} and run the same command again",
            ) from error
        images += [np.full_like(images[0], WHITE)] * (-len(images) % SHEET_COLUMNS)
    scale = max(1, SHEET_SIDE_PX // images[0].shape[0])
    large = np.stack(images).repeat(scale, axis=1).repeat(scale, axis=2)
    return grid(large, n_columns=SHEET_COLUMNS)


def _first_samples(folder: Path) -> list[NDArray[np.uint8]]:
    """Return a row of the sheet, by class where the first ones have several of each."""
    index = open_index(folder / IMAGES_FOLDER, labels=False)
    record = json.loads((folder / SAMPLES_NAME).read_bytes())
    n_shown = min(SHEET_COLUMNS, len(index))
    labels = record["labels"] or [0] * len(index)
    order = np.argsort(labels[:n_shown], kind="stable")
    return [np.asarray(decode(index.read(number)).image) for number in order.tolist()]
