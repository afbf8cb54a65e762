"""`gadc demo`: the whole way on real images, without a download."""

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from gadc.cli.console import AsJson, emit, session_of, table

INTRODUCTION = """\
{n_images:,} scans of handwritten digits were written as image files. {n_selected} of them, ten of
each digit, were selected and compared with {n_random} random choices of the same size (mean ±
standard deviation). Only the first line is what gadc minimises, the others were not optimised.
They are measured on raw pixels; the classifiers learn from the {n_selected} images and are tested
on all others."""
NEXT = """\
Your own images, in a folder with one folder per class:
  gadc select FOLDER --per-class 10 --out RESULT
(by DINOv2: pip install 'gadc[encoders]', which downloads its weights once; or --encoder pixels)"""


def demo(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for everything the demo writes; a second run goes on with what is there.",
        ),
    ] = Path("gadc-demo"),
    workers: Annotated[
        int,
        typer.Option(
            "--workers", metavar="N", help="Processes that select at the same time.", min=1
        ),
    ] = 2,
    as_json: AsJson = False,
) -> None:
    """Show the main job on 1,797 real images in less than a minute, without any download.

    Writes scikit-learn's handwritten digits as a folder of images, selects ten of each digit,
    exports them, compares them with random choices, and writes a report to look at.
    """
    from gadc.demo import run_demo

    result = run_demo(out, workers=workers, show=session_of(context).progress)
    emit(result, _as_text(result), as_json=as_json)


def _as_text(result: dict[str, Any]) -> str:
    rows = [
        [
            measure["name"],
            measure["better"],
            f"{measure['gadc']:.4f}",
            f"{statistics.mean(measure['random']):.4f} ± {statistics.stdev(measure['random']):.4f}",
        ]
        for measure in result["measures"]
    ]
    written = result["written"]
    files = [
        [written["digits"], "the images it selected from"],
        [written["subset"], "the selected images: path, SHA-256, class, order, gain, weight"],
        [written["paths"], "their paths"],
        [written["run"], "settings, objective and its bound for every class, versions"],
        [written["images"], "the selected images as a folder with one folder per class"],
        [written["sheet"], "the selected images on one sheet"],
        [written["comparison"], "the table above in full"],
    ]
    if "report" in written:
        files.append([written["report"], "all about the selection: open this in a browser"])
    return "\n\n".join(
        [
            INTRODUCTION.format(**result),
            table(rows, headers=["measure", "better", "gadc", "random"]),
            f"written:\n{table(files)}",
            NEXT,
        ]
    )
