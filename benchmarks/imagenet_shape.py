"""Time the selection from features of ImageNet-1K's shape, on disk, from file to subset.

python benchmarks/imagenet_shape.py [--classes 40] [--per-class 10] [--workers 2] [--json FILE]

Synthetic classes (n = 1281, d = 2048), each with a seed of its own, lie in shards of float32, 10 MB
a class; 1,000 classes are 10 GB. All that `gadc select` does with features is counted: checksums,
checks, duplicates, search, the record of every class and `subset.parquet`. There are no class
probabilities, and the probe is off (`--probe` turns it on).
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmark_class import benchmark_class
from gadc import CondenseConfig, condense, load_features
from gadc.condense import RECORDS_FOLDER
from gadc.job.prepare import prepare
from peak_memory import BYTES_PER_GB, peak_gb

N_CLASSES = 1000
ROWS, COLUMNS = 1281, 2048
CLASSES_PER_SHARD = 20
WRITER = (
    "import pathlib, sys; from imagenet_shape import write_features; "
    "write_features(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
)


def write_features(folder: Path, n_classes: int) -> None:
    """Write the classes that are not there yet, in shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, n_classes, CLASSES_PER_SHARD):
        labels = range(first, min(first + CLASSES_PER_SHARD, n_classes))
        path = folder / f"classes-{labels[0]:04d}-{labels[-1]:04d}.safetensors"
        if path.exists():
            continue
        features = torch.cat([benchmark_class(ROWS, COLUMNS, seed=label) for label in labels])
        classes = torch.repeat_interleave(torch.tensor(labels), ROWS)
        unfinished = path.with_name(f".{path.name}")
        save_file({"features": features, "labels": classes}, unfinished)
        unfinished.rename(path)


def measure(folder: Path, out: Path, arguments: argparse.Namespace) -> dict:
    """Select, and return the profile; times in seconds."""
    config = CondenseConfig(
        per_class=arguments.per_class, patience=arguments.patience, probe=arguments.probe
    )
    started = time.time()
    features = load_features(folder)
    loaded = time.time()
    # `condense` prepares by itself; this is only to know how long that takes.
    prepare(features, config, target=None, keep=(), exclude=(), device="cpu")
    prepare_seconds = time.time() - loaded
    began = time.time()
    subset = condense(
        features, config, out=out, workers=arguments.workers, device="cpu", show="auto"
    )
    ended = time.time()
    # When the record of each class was written: classes end in about the order of their numbers.
    finished = sorted(path.stat().st_mtime for path in (out / RECORDS_FOLDER).glob("*.json"))
    seconds = [subset.class_seconds[name] for name in features.class_names]
    n_classes, middle = len(seconds), len(seconds) // 2
    in_step = {
        "load": loaded - started,
        "prepare": prepare_seconds,
        "start of workers, and first class": finished[0] - began - prepare_seconds,
        "all other classes": finished[-1] - finished[0],
        "subset": ended - finished[-1],
    }
    per_class_wall = in_step["all other classes"] / (n_classes - 1)
    linear = in_step["load"] + in_step["prepare"]
    fixed = in_step["start of workers, and first class"] + in_step["subset"]
    n_processes = arguments.workers if arguments.workers > 1 else 0
    driver_gb, worker_gb = peak_gb(resource.RUSAGE_SELF), peak_gb(resource.RUSAGE_CHILDREN)
    return {
        "n_classes": n_classes,
        "rows": ROWS,
        "columns": COLUMNS,
        "per_class": arguments.per_class,
        "patience": arguments.patience,
        "workers": arguments.workers,
        "gigabytes": sum(path.stat().st_size for path in folder.iterdir()) / BYTES_PER_GB,
        "seconds": in_step,
        "total_seconds": (ended - began) + (loaded - started),
        "search_seconds_per_class": {
            "first half": statistics.mean(seconds[:middle]),
            "second half": statistics.mean(seconds[middle:]),
        },
        "wall_seconds_per_class": per_class_wall,
        "extrapolated_seconds": fixed + N_CLASSES * (per_class_wall + linear / n_classes),
        "driver_peak_gb": driver_gb,
        "worker_peak_gb": worker_gb if n_processes else None,
        "all_peak_gb": driver_gb + n_processes * worker_gb,
        "mean_objective": -float(subset.gain.sum()) / n_classes,
    }


def main() -> None:
    """Print the profile, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=40, help="1000 for all; 10 MB each")
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--patience", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--features", type=Path, help="folder to keep the shards in for next time")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.classes < 2:
        parser.error("--classes must be at least 2: halves are compared")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.features or Path(temporary)).resolve() / f"{arguments.classes}-classes"
        # In a process of its own: its memory is not what is measured.
        subprocess.run(
            [sys.executable, "-c", WRITER, str(folder), str(arguments.classes)],
            check=True,
            cwd=Path(__file__).parent,
        )
        found = measure(folder, Path(temporary) / "selected", arguments)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(json.dumps(found, indent=2))
    print(
        f"{N_CLASSES} classes at this pace: {found['extrapolated_seconds'] / 60:.1f} min; "
        f"{found['all_peak_gb']:.2f} GB in all processes at {found['n_classes']} classes"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
