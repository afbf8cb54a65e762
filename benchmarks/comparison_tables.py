"""Write docs/results: every method on digits and CIFAR-10, by `gadc compare`.

python benchmarks/comparison_tables.py DATASET... --work DIR [--cifar10 DIR] [--per-class 500]

DATASET is digits, cifar10-resnet56 or cifar10-pixels. A run that was interrupted goes on.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison_data import cifar10, digits

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "docs" / "results"
GADC = [sys.executable, "-c", "from gadc.cli import main; main()"]
HEADINGS = {
    "transport": "transport ↓",
    "frechet": "Fréchet ↓",
    "frechet-all": "Fréchet, all ↓",
    "kid": "KID",
    "mmd-set": "MMD² ↓",
    "energy": "energy ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "density": "density ↑",
    "coverage": "coverage ↑",
    "mean-gap": "mean gap ↓",
    "cov-gap": "cov. gap ↓",
    "duplicates": "duplicates ↓",
    "confidence": "-log p ↓",
    "seconds": "seconds ↓",
    "peak-memory": "MB ↓",
}
ROUNDING = 1e-9
NOT_COUNTED = frozenset(["kid", "mmd-rbf", "seconds", "peak-memory"])
TITLES = {
    "digits": "Digits: selected by pixels, judged by a network's hidden layer too",
    "cifar10-resnet56": "CIFAR-10: selected by ResNet-56 features, judged by pixels too",
    "cifar10-pixels": "CIFAR-10: selected by pixels, judged by ResNet-56 features too",
}
LEGEND = """\
Means over classes and seeds, ± the standard deviation over seeds; methods without one have no \
randomness. **Bold**:
the best of gadc, its peers and random selection (not of the ablations, nor of the reference). \
"(+)" and "(-)": better
than random selection of the same seed in all seeds, and worse in all: with five seeds the sign \
test has p = 0.06.
Definitions: [compare](../how-to/compare.md). Fréchet is biased where a class has more dimensions \
than images: compare
methods with each other only. KID is unbiased for independent draws; a choice that is spread \
evenly goes below zero, and
lower is then not better."""


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="+", choices=list(TITLES))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path, default=Path("cifar10"))
    parser.add_argument("--per-class", type=int, default=500)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.datasets:
        command = prepared(name, arguments.work, arguments.cifar10, arguments.per_class)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [*GADC, *command], check=True, cwd=arguments.work, env=environment, stdout=sys.stderr
        )
        result = json.loads((arguments.work / name / "comparison.json").read_text())
        note = pool_note(name, arguments.per_class)
        (RESULTS / f"{name}.md").write_text(as_markdown(TITLES[name], note, command, result))


def prepared(name: str, work: Path, source: Path, n_per_class: int) -> list[str]:
    """Write the data, and return the arguments of `gadc` in the folder `work`."""
    budgets = ["--methods", "all", "--per-class", "10", "50", "--seeds", "5", "--out", name]
    if name == "digits":
        digits(work)
        judged = ["--judge", "digits-network.safetensors", "--holdout", "0.2"]
        return ["compare", "digits-pixels.safetensors", *budgets, *judged]
    cifar10(work, source, n_per_class)
    own, other = ("resnet56", "pixels") if name == "cifar10-resnet56" else ("pixels", "resnet56")
    files = {
        "--judge": f"cifar10-{other}-{n_per_class}.safetensors",
        "--held-out": f"cifar10-{own}-test.safetensors",
        "--judge-held-out": f"cifar10-{other}-test.safetensors",
    }
    judged = [word for option in files.items() for word in option]
    return ["compare", f"cifar10-{own}-{n_per_class}.safetensors", *budgets, *judged, "--no-proof"]


def pool_note(name: str, n_per_class: int) -> str:
    """Return what the pool is, and what was left out of it."""
    if name == "digits":
        return "Pool: four fifths of the 1,797 images; held out: the others."
    return (
        f"Pool: {n_per_class:,} of the 5,000 training images of each class, drawn with seed 0, so "
        "that all methods run in minutes;\nheld out: all 10,000 test images. gadc searches without "
        "its final proof (`--no-proof`)."
    )


def as_markdown(title: str, note: str, command: Sequence[str], result: Mapping[str, Any]) -> str:
    """Return the page about one comparison."""
    parts = [
        f"# {title}",
        f"{note}\nWritten by `python benchmarks/comparison_tables.py`, which ran",
        f"```sh\ngadc {shlex.join(command)}\n```",
        f"with gadc {result['versions']['gadc']}, torch {result['versions']['torch']}, on one "
        f"thread of a shared two-core machine. Difficulty (CCS, D2C): "
        f"{result['data']['difficulty']}.",
        LEGEND,
    ]
    spaces = {space["name"]: space["is_selection"] for space in result["data"]["spaces"]}
    settings = sorted(
        {(row["n_per_class"], row["space"], row["split"]) for row in result["table"]},
        key=lambda setting: (setting[0], not spaces[setting[1]], setting[2] != "pool"),
    )
    parts.append("## Where others are ahead of gadc")
    parts.append(ahead_list(result, settings, spaces))
    parts.append(ablation_list(result))
    for setting in settings:
        parts.append(f"## {heading(*setting, spaces)}")
        parts.append(as_table([row for row in result["table"] if setting_of(row) == setting]))
    return "\n\n".join(parts) + "\n"


def setting_of(row: Mapping[str, Any]) -> tuple[int, str, str]:
    """Return which table a row, or an entry of `ahead_of_gadc`, belongs to."""
    return row["n_per_class"], row["space"], row["split"]


def heading(n_per_class: int, space: str, split: str, spaces: Mapping[str, bool]) -> str:
    """Return what a table is about."""
    seen = "the space of the selection" if spaces[space] else "a space that no method saw"
    against = "the pool" if split == "pool" else "held-out images"
    return f"{n_per_class} per class, against {against}, in {seen}"


def ahead_list(
    result: Mapping[str, Any],
    settings: Sequence[tuple[int, str, str]],
    spaces: Mapping[str, bool],
) -> str:
    """Return a list of the measures in which a peer is better than gadc, with the numbers."""
    means = {(setting_of(row), row["measure"], row["method"]): row for row in result["table"]}
    lines = []
    for setting in settings:
        found = []
        for entry in result["ahead_of_gadc"]:
            if setting_of(entry) != setting:
                continue
            rows = [means[setting, entry["measure"], name] for name in entry["methods"]]
            peers = [
                f"{row['method']} {number(row['mean'])}"
                for row in rows
                if row["kind"] in ("peer", "random")
            ]
            own = number(means[setting, entry["measure"], "gadc"]["mean"])
            if peers:
                found.append(f"{entry['measure']} {own} ({', '.join(peers)})")
        title = heading(*setting, spaces)
        lines.append(f"- **{title}**: {'; '.join(found) or 'none, in any measure'}.")
    return "Peers, measure by measure: gadc's number, then the better ones, best first.\n\n" + (
        "\n".join(lines)
    )


def ablation_list(result: Mapping[str, Any]) -> str:
    """Return in how many cells of all tables each ablation is better than gadc, and worse."""
    own = {
        (setting_of(row), row["measure"]): row
        for row in result["table"]
        if row["method"] == "gadc" and row["mean"] is not None
    }
    better: dict[str, int] = {}
    worse: dict[str, int] = {}
    for row in result["table"]:
        whole = own.get((setting_of(row), row["measure"]))
        if row["kind"] != "ablation" or whole is None or row["mean"] is None:
            continue
        if row["measure"] in NOT_COUNTED:
            continue
        gain = (row["mean"] - whole["mean"]) * (1 if row["better"] == "higher" else -1)
        better[row["method"]] = better.get(row["method"], 0) + (gain > 0)
        worse[row["method"]] = worse.get(row["method"], 0) + (gain < 0)
    listed = ", ".join(f"{name} {better[name]} : {worse[name]}" for name in better)
    return (
        "Ablations, in how many cells of all tables they are better and worse than gadc (often by "
        f"little; without KID and\ncosts): {listed}."
    )


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of methods by measures."""
    measures = [name for name in HEADINGS if any(row["measure"] == name for row in rows)]
    cells = {(row["method"], row["measure"]): row for row in rows}
    best = {measure: best_mean(rows, measure) for measure in measures}
    lines = ["| method | " + " | ".join(HEADINGS[name] for name in measures) + " |"]
    lines.append("|---|" + "--:|" * len(measures))
    for method, title in {row["method"]: row["title"] for row in rows}.items():
        shown = [cell(cells.get((method, measure)), best[measure]) for measure in measures]
        lines.append(f"| {title} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def best_mean(rows: Sequence[Mapping[str, Any]], measure: str) -> float | None:
    """Return the best mean of gadc, peers and random; None where it says nothing."""
    if measure == "kid":
        return None
    found = [
        row
        for row in rows
        if row["measure"] == measure
        and row["mean"] is not None
        and row["kind"] in ("gadc", "peer", "random")
    ]
    if not found:
        return None
    means = [row["mean"] for row in found]
    return min(means) if found[0]["better"] == "lower" else max(means)


def cell(row: Mapping[str, Any] | None, best: float | None) -> str:
    """Return a number with its deviation and its sign against random selection."""
    if row is None or row["mean"] is None:
        return ""
    text = number(row["mean"])
    if row["mean"] == best and row["kind"] in ("gadc", "peer", "random"):
        text = f"**{text}**"
    if row["sd"] is not None:
        text += " ± 0" if row["sd"] < ROUNDING * abs(row["mean"]) else f" ± {row['sd']:.2g}"
    signs = row["against_random"]
    if signs and row["kind"] != "reference" and row["measure"] not in NOT_COUNTED:
        if signs["better"] and not signs["worse"] and not signs["equal"]:
            text += " (+)"
        elif signs["worse"] and not signs["better"] and not signs["equal"]:
            text += " (-)"
    return text


def number(value: float) -> str:
    """Return three digits that count."""
    if value == 0.0:
        return "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


if __name__ == "__main__":
    main()
