"""Write what an experiment found as a page of `docs/results`: whatever it is.

`gadc experiment digits --out DIR --workers 2`, then
`python benchmarks/experiment_results.py DIR docs/results/digits-experiment.md --machine TEXT`.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from gadc.comparison.files import PARQUET_NAME
from gadc.experiment.runner import SHEET_NAME
from gadc.experiment.table import SHOWN, as_markdown

COMPARED = ("frechet", "fid", "kid", "recall", "coverage", "class-agreement", "near-copies")
"""Measures of the table of differences."""


def page(result: dict[str, Any], picture: str, machine: str) -> str:
    """Return the page for the contents of `experiment.json`."""
    protocol, judge = result["protocol"], result["judge"]
    command = f"gadc experiment {protocol['name']} --out DIR --workers 2"
    n_seeds = len(protocol["seeds"])
    accuracy = ""
    if "accuracy_held_out" in judge:
        accuracy = (
            f" The classifier sees the right class in {judge['accuracy_pool']:.1%} of the pool, "
            f"which it was trained on, and in {judge['accuracy_held_out']:.1%} of the held-out "
            "images."
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts = [
        f"# The protocol `{protocol['name']}`",
        f"{protocol['about']} Written by `benchmarks/experiment_results.py` from\n\n"
        f"```sh\n{command}\n```",
        f"{versions}; {machine}. {len(result['runs'])} cells, {n_seeds} seeds. Means and standard "
        f"deviations over seeds.{accuracy} What the columns mean: "
        "[experiment](../how-to/experiment.md).",
        f"`gadc report {Path(picture).stem} --out report.html`, here, draws every number.",
        "## All numbers",
        as_markdown(result["table"]).rstrip(),
        "## Differences to random selection, within seeds",
        "Mean and standard deviation of *method minus random* over seeds, and in how many seeds "
        "the method is better.",
        differences(result["table"]),
        reading(result["table"], n_seeds),
        "## Samples",
        f"The first samples of seed {protocol['seeds'][0]}, by class, from the same noise for all; "
        f"rows: {'; '.join(rows_of(result))}.",
        f"![samples of every method]({picture})",
    ]
    return "\n\n".join(parts) + "\n"


def rows_of(result: dict[str, Any]) -> list[str]:
    """Return the titles of the rows of the picture."""
    titles = {row["method"]: row["title"] for row in result["table"]}
    return [titles[name] for name in dict.fromkeys(run["method"] for run in result["runs"])]


def differences(table: list[dict[str, Any]]) -> str:
    """Return a table of differences for each setting."""
    found = [row for row in table if row["difference"] and row["measure"] in COMPARED]
    parts = []
    for setting in dict.fromkeys((r["n_per_class"], r["space"], r["split"]) for r in found):
        rows = [r for r in found if (r["n_per_class"], r["space"], r["split"]) == setting]
        measures = [name for name in SHOWN if any(row["measure"] == name for row in rows)]
        cells = {(row["method"], row["measure"]): row for row in rows}
        arrows = {row["measure"]: "↓" if row["better"] == "lower" else "↑" for row in rows}
        heads = ["method", *(f"{SHOWN[name]} {arrows[name]}" for name in measures)]
        lines = [f"{setting[0]} per class, {setting[1]}", "", f"| {' | '.join(heads)} |"]
        lines.append(f"|{'---|' * len(heads)}")
        for method, title in {row["method"]: row["title"] for row in rows}.items():
            shown = [difference(cells.get((method, name))) for name in measures]
            lines.append(f"| {' | '.join([title, *shown])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def difference(row: dict[str, Any] | None) -> str:
    """Return a difference as people read it."""
    if row is None:
        return ""
    found = row["difference"]
    sd = "" if found["sd"] is None else f" ± {found['sd']:.3g}"
    return f"{found['mean']:+.3g}{sd} ({found['better']}/{found['n_seeds']})"


def reading(table: list[dict[str, Any]], n_seeds: int) -> str:
    """Say who is first and who is better than random in every seed, by the first measure."""
    lines = ["## What it shows", ""]
    settings = dict.fromkeys((r["n_per_class"], r["space"], r["split"]) for r in table)
    for setting in settings:
        rows = [r for r in table if (r["n_per_class"], r["space"], r["split"]) == setting]
        name = next(name for name in SHOWN if any(row["measure"] == name for row in rows))
        models = [r for r in rows if r["measure"] == name and r["kind"] != "reference"]
        ordered = sorted(
            models, key=lambda row: row["mean"], reverse=models[0]["better"] != "lower"
        )
        always = [
            row["title"]
            for row in ordered
            if row["difference"] and row["difference"]["better"] == n_seeds
        ]
        never = [
            row["title"]
            for row in ordered
            if row["difference"] and row["difference"]["worse"] == n_seeds
        ]
        best = ordered[0]
        reach = best["sd"] or 0.0
        near = [row["title"] for row in ordered[1:] if abs(row["mean"] - best["mean"]) <= reach]
        copies = [r for r in rows if r["measure"] == "closer-to-training"]
        ranking = "; ".join(f"{row['title']} {row['mean']:.2f}" for row in ordered)
        lines += [
            f"- {SHOWN[name]}, {setting[0]} per class, {setting[1]}, best first: {ranking}.",
            f"- Better than random selection in all {n_seeds} seeds: "
            f"{'; '.join(always) or 'none'}. Worse in all: {'; '.join(never) or 'none'}. By chance "
            f"alone, either happens to a method in one of {2**n_seeds} cases.",
        ]
        lines.append(
            f"- Within one deviation of the first, so not told apart from it: "
            f"{'; '.join(near) or 'none'}."
        )
        lines += [
            f"- Closer to training: {row['title']} {row['mean']:.3f}; by chance {row['note']}."
            for row in copies
            if row["method"] in ("gadc", "random")
        ]
    lines.append(
        "- The deviation of random selection and of k-center is that of selection and training, "
        "that of the others of training alone. One data set, one split, one model."
    )
    return "\n".join(lines)


def main() -> None:
    """Write the page, and the picture beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder that `gadc experiment` wrote")
    parser.add_argument("page", type=Path, help="the Markdown file to write")
    parser.add_argument("--machine", required=True, help="where it ran, and how long it took")
    given = parser.parse_args()
    result = json.loads((given.run / "experiment.json").read_bytes())
    picture = given.page.with_suffix(".png")
    given.page.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(given.run / SHEET_NAME, picture)
    numbers = given.page.with_suffix("")
    numbers.mkdir(exist_ok=True)
    shutil.copyfile(given.run / PARQUET_NAME, numbers / PARQUET_NAME)
    given.page.write_text(page(result, picture.name, given.machine), encoding="utf-8")


if __name__ == "__main__":
    main()
