"""Time the selection of one class, from features to a swap-optimal subset.

python benchmarks/select_class.py [--n-selected 10 50] [--repeats 5] [--yardstick] [--verify]

The default class is synthetic (n = 1300, d = 2048, transport only, epsilon = 12, capacity 1.05).
Everything is counted: costs, starts, exchanges, kicks, proof, and the order of the result.
`--yardstick` adds the slow way, which takes minutes: exhaustive exchange from the greedy start.
`--verify` solves every exchange of gadc's result, none ruled out by a bound: minutes as well. Where
the package kmedoids is installed (GPL, not needed by gadc), its FasterPAM runs beside.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from benchmark_class import benchmark_class
from gadc import Objective
from gadc.search import Candidates, search
from gadc.search.greedy import greedy
from gadc.search.medoids import medoids
from gadc.search.multistart import DEFAULT_PATIENCE
from yardstick import best_exchange, exhaustive

try:
    import kmedoids
except ImportError:
    kmedoids = None

N_RANDOM = 20
YARDSTICK = "exhaustive exchange"


def measure(
    features: torch.Tensor,
    n_selected: int,
    weights: dict,
    repeats: int,
    *,
    yardstick: bool,
    verify: bool,
) -> list[dict]:
    """Return one row per method: median seconds over `repeats`, objective, work done."""
    n = len(features)
    chosen: dict[int, list[int]] = {}

    def objective() -> Objective:
        return Objective(features, **weights)

    def run_gadc(patience: int) -> tuple[float, dict]:
        found = search(objective(), n_selected, patience=patience)
        gap = found.terms["transport"] - found.terms["transport_lower_bound"]
        chosen[patience] = found.order.tolist()
        return found.objective, {
            "swaps": found.counts.n_swaps,
            "pruned": found.counts.n_pruned,
            "solved": found.counts.n_solved,
            "swap_optimal": found.is_swap_optimal,
            "certificate_gap": gap,
        }

    def run_greedy() -> tuple[float, dict]:
        target = objective()
        return target.value(greedy(target, n_selected, Candidates(n)).indices), {}

    def run_medoids() -> tuple[float, dict]:
        target = objective()
        return target.value(medoids(target.cost, n_selected, Candidates(n))), {}

    def run_fasterpam() -> tuple[float, dict]:
        target = objective()
        found = kmedoids.fasterpam(target.cost.numpy(), n_selected, random_state=0)
        return target.value(found.medoids.astype(np.int64)), {}

    def run_random() -> tuple[float, dict]:
        rng = np.random.default_rng(0)
        sets = np.array([rng.choice(n, n_selected, replace=False) for _ in range(N_RANDOM)])
        return float(objective().values(sets).mean()), {}

    def run_yardstick() -> tuple[float, dict]:
        _, value, n_swaps = exhaustive(objective(), n_selected)
        return value, {"exchanges": n_swaps}

    methods = {
        "gadc": lambda: run_gadc(DEFAULT_PATIENCE),
        "gadc, no kicks": lambda: run_gadc(0),
        "greedy only": run_greedy,
        "k-medoids": run_medoids,
        f"random (mean of {N_RANDOM})": run_random,
    }
    if kmedoids is not None:
        methods["FasterPAM (kmedoids)"] = run_fasterpam
    if yardstick:
        methods[YARDSTICK] = run_yardstick
    rows = []
    for name, run in methods.items():
        is_slow = name == YARDSTICK
        if not is_slow:
            run()  # warm-up
        seconds = []
        for _ in range(1 if is_slow else repeats):
            started = time.perf_counter()
            value, details = run()
            seconds.append(time.perf_counter() - started)
        rows.append(
            {
                "method": name,
                "n": n,
                "d": features.shape[1],
                "n_selected": n_selected,
                "seconds": statistics.median(seconds),
                "objective": value,
                **details,
            }
        )
    if verify:
        lowest = best_exchange(objective(), chosen[DEFAULT_PATIENCE])
        rows[0]["lowest_exchange"] = lowest - rows[0]["objective"]
    return rows


def cost_matrix_seconds(features: torch.Tensor, repeats: int) -> float:
    """Return the median time of the whole product, 2 n^2 d flops: what times are compared with.

    A selection makes little more than half of it, since the matrix is symmetric.
    """
    seconds = []
    for _ in range(max(repeats, 3)):
        started = time.perf_counter()
        features @ features.T
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    """Print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-selected", type=int, nargs="+", default=[10])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--features", type=Path, help="safetensors with features and labels")
    parser.add_argument("--label", type=int, default=0, help="class to take from --features")
    parser.add_argument("--yardstick", action="store_true", help="also the slow, plain way")
    parser.add_argument("--verify", action="store_true", help="solve every exchange of the result")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.features:
        tensors = load_file(arguments.features)
        features = tensors["features"][tensors["labels"] == arguments.label]
        weights: dict = {}
    else:
        features = benchmark_class()
        weights = {"epsilon": 12.0, "mean_weight": 0.0, "std_weight": 0.0, "units": "absolute"}
    floor = cost_matrix_seconds(features, arguments.repeats)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, ")
    n, d = features.shape
    print(
        f"torch {torch.__version__}; the cost matrix's product alone, the physical limit: "
        f"{floor:.3f} s, {2e-9 * n * n * d / floor:.0f} GFLOP/s"
    )
    rows = []
    for n_selected in arguments.n_selected:
        for row in measure(
            features,
            n_selected,
            weights,
            arguments.repeats,
            yardstick=arguments.yardstick,
            verify=arguments.verify,
        ):
            rows.append(row | {"share_of_limit": floor / row["seconds"]})
            print(
                f"{row['method']:24} k={n_selected:<4} {row['seconds']:8.3f} s"
                f" ({100 * floor / row['seconds']:.2g} % of the limit)"
                f"  objective {row['objective']:.4f}"
                + (
                    f"  swaps {row['swaps']}  pruned {row['pruned']}  solved {row['solved']}"
                    f"  swap-optimal {row['swap_optimal']}  gap {row['certificate_gap']:.3f}"
                    if "swaps" in row
                    else ""
                )
                + (
                    f"  every exchange solved: the lowest is {row['lowest_exchange']:+.6f}"
                    if "lowest_exchange" in row
                    else ""
                )
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
