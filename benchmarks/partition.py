"""Time the search of unlabelled data too large for its cost matrix, from a file to a subset.

python benchmarks/partition.py [--images 100000] [--selected 1000] [--features 768] [--growth]

Synthetic features (mixture of 200 stretched blobs) lie in a memory-mapped file. `--growth` runs a
quarter and a half of it first, each with its share of the subset, and states how the time grows.
Every run is a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gadc.features.tensors import release_pages
from gadc.search import search_partitioned
from peak_memory import own_peak_gb

N_BLOBS, SHEET = 200, 24
ROWS_AT_A_TIME = 10_000
TARGET_IMAGES = 1_000_000


def write_features(path: Path, n_images: int, n_features: int) -> None:
    """Write float32 [n_images, n_features], block by block."""
    rng = np.random.default_rng(0)
    sheets = rng.normal(size=(N_BLOBS, SHEET, n_features)).astype(np.float32) * 0.1
    centres = rng.normal(size=(N_BLOBS, n_features)).astype(np.float32) * 0.5
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n_images, n_features))
    for first in range(0, n_images, ROWS_AT_A_TIME):
        n = min(ROWS_AT_A_TIME, n_images - first)
        blob = rng.integers(0, N_BLOBS, n)
        noise = rng.normal(size=(n, n_features)).astype(np.float32) * 0.1
        position = rng.normal(size=(n, SHEET)).astype(np.float32)
        out[first : first + n] = (
            centres[blob] + np.einsum("ns,nsd->nd", position, sheets[blob]) + noise
        )
    out.flush()


def run(path: Path, n_images: int, n_selected: int) -> dict:
    """Search, and return what it took and what came out."""
    features = np.load(path, mmap_mode="r")[:n_images]
    started = time.perf_counter()
    found = search_partitioned(features, n_selected, release=lambda: release_pages(features))
    terms = found.result.terms
    return {
        "images": n_images,
        "selected": n_selected,
        "seconds": time.perf_counter() - started,
        "peak_gb": own_peak_gb(),
        "cells": found.n_cells,
        "objective": terms["total"] / found.scale,
        "rounds": [value / found.scale for value in found.values],
        "transport_gap": (terms["transport"] - terms["transport_lower_bound"]) / terms["transport"],
    }


def main() -> None:
    """Print a line for each run, and the growth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--selected", type=int, default=1_000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run(arguments.run, arguments.images, arguments.selected)))
        return
    parts = (4, 2, 1) if arguments.growth else (1,)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "features.npy"
        write_features(path, arguments.images, arguments.features)
        for part in parts:
            sizes = [str(arguments.images // part), str(arguments.selected // part)]
            command = [sys.executable, __file__, "--run", str(path)]
            found = subprocess.run(
                [*command, "--images", sizes[0], "--selected", sizes[1]],
                check=True,
                capture_output=True,
                text=True,
            )
            rows.append(json.loads(found.stdout))
            print(rows[-1], flush=True)
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        exponent = math.log(last["seconds"] / first["seconds"]) / math.log(
            last["images"] / first["images"]
        )
        # Rounds, whose number differs, may hide it, but every image is read in each.
        minutes = last["seconds"] * (TARGET_IMAGES / last["images"]) ** max(exponent, 1.0) / 60
        print(
            f"time grows as n^{exponent:.2f}; {TARGET_IMAGES:,} images, at least in proportion: "
            f"{minutes:.0f} min"
        )


if __name__ == "__main__":
    main()
