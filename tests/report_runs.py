"""Runs made for tests of reports: selections from a handful of images, comparisons of none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from features_helpers import tiny_pixels
from gadc.job.config import CondenseConfig
from gadc.runs.inputs import ImageSettings
from gadc.runs.selection import Request, run_selection
from gadc.training.journal import LOSSES_NAME
from gadc.training.record import RunRecord
from gadc.training.transformer import TransformerShape
from training_runs import tiny_config

INJECTIONS = (
    "<script>window.hit=1;<script>",
    "<img src=x onerror=window.hit=1>",
    "<svg onload=window.hit=1>",
    '"><svg onload=window.hit=1>',
    "'><img src=x onerror=window.hit=1>",
    '" onmouseover="window.hit=1',
    "' onfocus='window.hit=1' autofocus='",
    "javascript:window.hit=1",
    "<a href=javascript:window.hit=1>x",
    "<iframe srcdoc=x>",
    "<!--",
    "-->",
    "<![CDATA[",
    "]]>",
    "{{7*7}}",
    "{% raw %}",
    "${window.hit=1}",
    "`${window.hit=1}`",
    "%{x} %{customdata}",
    "<b>bold<b>",
    "<br>",
    "&lt;script&gt;",
    "&amp;amp;",
    "&#60;img&#62;",
    "\\u003cscript\\u003e",
    "\\",
    '";window.hit=1;"',
    "');window.hit=1;('",
    "<style>*{display:none}<style>",
    "<plaintext>",
    "<template><textarea>",
    "__proto__",
    "constructor",
)
WITH_SLASH = ("</script><script>window.hit=1</script>", "</title></style>", "*/window.hit=1/*")
SIDE_PX = 12


def write_named_images(root: Path, names: tuple[str, ...], *, n_per_class: int = 4) -> Path:
    """Write a class folder for each name, of images that carry the class's name too."""
    random = np.random.default_rng(3)
    for place, name in enumerate(names):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(n_per_class):
            pixels = random.integers(0, 120, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
            pixels[..., place % 3] += 100
            Image.fromarray(pixels).save(folder / f"{number} {name}.png")
    return root


def select_images(data: Path, out: Path, **options: Any) -> Path:
    """Select from images by few pixels and the quickest search."""
    config = CondenseConfig(**{"per_class": 2, "start": "greedy", "patience": 0, **options})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gadc.runs.inputs.load_encoder", lambda *_args, **_rest: tiny_pixels())
        run_selection(Request(data, out, config, ImageSettings(max_bad=0.5), workers=1))
    return out


def comparison_rows(**fixed: Any) -> list[dict[str, Any]]:
    """Return numbers of three methods by two measures; random has three seeds."""
    common = {"n_per_class": 10, "space": "features", "split": "pool", "class_name": ""} | fixed
    rows = []
    for name, kind, seeds, values in (
        ("random", "random", (0, 1, 2), (3.0, 4.0, 5.0)),
        ("k-center", "peer", (None,), (6.0,)),
        ("gadc", "gadc", (None,), (2.0,)),
    ):
        for seed, value in zip(seeds, values, strict=True):
            method = {"method": name, "title": name.title(), "kind": kind, "seed": seed, **common}
            rows.append(
                {
                    **method,
                    "measure": "energy",
                    "measure_title": "energy distance",
                    "better": "lower",
                    "value": value,
                    "note": "",
                }
            )
            is_undefined = name == "k-center"
            rows.append(
                {
                    **method,
                    "measure": "recall",
                    "measure_title": "recall",
                    "better": "higher",
                    "value": None if is_undefined else 1.0 / value,
                    "note": "needs more than 5 images" if is_undefined else "",
                }
            )
    return rows


def write_comparison(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = ("method", "title", "kind", "space", "split", "class_name")
    schema = pyarrow.schema(
        [
            *((name, pyarrow.string()) for name in text),
            ("n_per_class", pyarrow.int64()),
            ("seed", pyarrow.int64()),
            *((name, pyarrow.string()) for name in ("measure", "measure_title", "better")),
            ("value", pyarrow.float64()),
            ("note", pyarrow.string()),
        ],
        metadata={b"gadc": json.dumps({"schema": 1, "command": {}, "versions": {}}).encode()},
    )
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    pyarrow.parquet.write_table(table, folder / "comparison.parquet")
    return folder


def write_training(folder: Path, lines: list[dict[str, Any]], **options: Any) -> Path:
    """Write what a training run leaves, but for its weights."""
    folder.mkdir(parents=True)
    config = tiny_config(**options)
    shape = TransformerShape(
        size=config.parts.size, patch=4, side=8, channels=3, channels_out=3, n_classes=2
    )
    RunRecord(config, shape, ["a", "b"], 12, "images", "space", None, {"gadc": "0"}).save(folder)
    (folder / LOSSES_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def loss_lines(n_lines: int) -> list[dict[str, Any]]:
    return [
        {"step": 2 * n + 2, "n_steps": 2, "loss": 1.0 / (n + 1), "images_per_second": 50.0}
        for n in range(n_lines)
    ]


def write_experiment(folder: Path, names: tuple[str, ...] = ("random", "gadc")) -> Path:
    """Write an experiment of one run for each method, and one more that both gadc's share."""
    write_comparison(folder, comparison_rows())
    runs = []
    for number, name in enumerate(names):
        write_training(folder / "runs" / f"run{number}", loss_lines(3), seed=number)
        cell = {"model": "SiT-T/4", "length": "4 steps", "n_per_class": 3, "seed": number}
        runs.append({**cell, "method": name, "run": f"run{number}"})
    runs.append({**runs[-1], "method": "same"})
    table = [{"method": name, "title": name.title()} for name in (*names, "same")]
    stored = {"schema": 1, "table": table, "runs": runs}
    (folder / "experiment.json").write_text(json.dumps(stored))
    return folder
