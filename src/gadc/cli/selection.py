"""`gadc select`: from images or features to a subset."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gadc.cli import options
from gadc.cli import selection_options as selecting
from gadc.cli.composed import takes
from gadc.cli.console import AsJson, emit, session_of, table
from gadc.cli.features import EXIT_WITH_QUARANTINE, left_out, reconciled
from gadc.errors import InputError

if TYPE_CHECKING:
    from gadc.job.config import CondenseConfig
    from gadc.runs.selection import Request
    from gadc.search import Nested

BUDGETS = ("--per-class", "--fraction", "--budget")
MAX_CLASSES_SHOWN = 30
CONFIDENCE = {
    "given": "class probabilities of the encoder, or of the file of features",
    "probe": "class probabilities of a linear classifier fitted to the features",
}
LEGEND = (
    "objective: distance between the subset and its class, in units of the class's median squared\n"
    "distance; lower is better. gap: the transport part is at most so far above its exact value.\n"
    "swap-optimal: exchanging any one image for another would not improve the objective."
)
PARTITION_LEGEND = (
    "in cells: a class too large to compare all pairs; exchanges were tried in each part of it."
)
NESTED_LEGEND = (
    "nested: each smaller subset stays as it is in the larger ones; swap-optimal then speaks of\n"
    "the images that a size adds."
)


def request_of(
    data: selecting.Data,
    out: options.OutFolder,
    per_class: selecting.PerClass = None,
    fraction: selecting.Fraction = None,
    budget: selecting.Budget = None,
    allocate: selecting.AllocateOption = None,
    allocation_file: selecting.AllocationFile = None,
    shortfall: selecting.ShortfallOption = selecting.Shortfall.TAKE_ALL,
    nested: selecting.Nested = None,
    nested_sizes: selecting.NestedSizes = None,
    clusters: selecting.Clusters = None,
    target: selecting.Target = None,
    keep: selecting.Keep = None,
    exclude: selecting.Exclude = None,
    dedup: selecting.DedupOption = selecting.Dedup.FIRST,
    features: selecting.FeaturesFile = None,
    labels_file: selecting.LabelsFile = None,
    encoder: options.EncoderName = options.DEFAULT_ENCODER,
    weights: options.Weights = None,
    class_map: options.ClassMapFile = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 64,
    decode_workers: options.DecodeWorkers = 2,
    labels: options.Labels = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    follow_outside: options.FollowOutside = False,
    animated: options.AnimatedOption = options.Animated.FIRST,
    min_side_px: options.MinSide = 1,
    max_pixels: options.MaxPixels = 89_000_000,
    on_error: options.OnErrorOption = options.OnError.QUARANTINE,
    max_bad: options.MaxBad = 0.01,
    start: selecting.StartOption = selecting.Start.MEDOIDS,
    max_swaps: selecting.MaxSwaps = None,
    patience: selecting.Patience = 4,
    proof: selecting.Proof = True,
    partition: selecting.PartitionOption = selecting.Partition.AUTO,
    seed: selecting.Seed = 0,
    engine: options.EngineOption = options.Engine.LOCAL,
    address: options.Address = None,
    workers: selecting.Workers = None,
    capacity: selecting.Capacity = 1.05,
    epsilon: selecting.Epsilon = 0.025,
    mean_weight: selecting.MeanWeight = 1.0,
    std_weight: selecting.StdWeight = 1.0,
    confidence_weight: selecting.ConfidenceWeight = None,
    units: selecting.UnitsOption = selecting.Units.RELATIVE,
    probe: selecting.Probe = True,
    null: selecting.NullPaths = False,
    wait: options.Wait = 0.0,
) -> "Request":
    """Return the selection that these options ask for."""
    images = options.image_settings(
        encoder=encoder,
        weights=weights,
        class_map=class_map,
        labels=labels,
        image_column=image_column,
        label_column=label_column,
        follow_outside=follow_outside,
        animated=animated,
        min_side_px=min_side_px,
        max_pixels=max_pixels,
        on_error=on_error,
        max_bad=max_bad,
        batch_size=batch_size,
        decode_workers=decode_workers,
        device=device,
    )
    config = _config(
        per_class=per_class,
        fraction=fraction,
        budget=budget,
        allocate=None if allocate is None else allocate.value,
        allocation_file=allocation_file,
        shortfall=shortfall.value,
        start=start.value,
        max_swaps=max_swaps,
        capacity=capacity,
        epsilon=epsilon,
        mean_weight=mean_weight,
        std_weight=std_weight,
        confidence_weight=confidence_weight,
        units=units.value,
        probe=probe,
        clusters=clusters,
        dedup=dedup.value,
        seed=seed,
        patience=patience,
        proof=proof,
        nested=_nested(nested, nested_sizes),
        partition=partition.value,
    )
    from gadc.runs.selection import Request

    return Request(
        data=data,
        out=out,
        config=config,
        images=images,
        features=features,
        labels_file=labels_file,
        target=target,
        keep=keep,
        exclude=exclude,
        workers=workers,
        engine=engine.value,
        address=address,
        wait_seconds=wait,
        null_paths=null,
    )


@takes(request_of)
def select(
    context: typer.Context,
    request: "Request",
    strict_exit: options.StrictExit = False,
    as_json: AsJson = False,
) -> None:
    """Select the images that stand for all the others, class by class.

    For example, ten of each class from a folder with one folder per class:

        gadc select photos --per-class 10 --out selected

    DIR gets:

    - `subset.parquet`: the selected images: path, SHA-256, class, order and gain of each
    - `paths.txt`: their paths, one a line
    - `run.json`: settings, the value of the objective and its bound for every class, versions
    - `quarantine.parquet`, `excluded.parquet`: what was left out, and why
    - `features/`, `classes/`: work that is not done again when the command is repeated
    """
    from gadc.runs.selection import run_selection

    record = run_selection(request, show=session_of(context).progress)
    emit(record, as_text(record), as_json=as_json)
    if strict_exit and record["n_quarantined"]:
        raise typer.Exit(EXIT_WITH_QUARANTINE)


def _config(*, allocation_file: Path | None, **fields: Any) -> "CondenseConfig":
    from gadc.job.config import CondenseConfig
    from gadc.runs.selection import read_allocation

    given = [name for name in BUDGETS if fields[name.strip("-").replace("-", "_")] is not None]
    if len(given) > 1 or not (given or allocation_file):
        raise InputError(
            "budget_choice",
            f"say how many images by one of {', '.join(BUDGETS)} (or --allocation-file alone); "
            f"got {' and '.join(given) or 'none'}",
        )
    if allocation_file is not None:
        fields["allocation"] = read_allocation(allocation_file)
        fields["allocate"] = fields["allocate"] or "file"
    return CondenseConfig(**fields)


def _nested(is_nested: bool | None, sizes: str | None) -> "Nested | None":
    if sizes is None:
        return "halves" if is_nested else None
    try:
        return tuple(int(size) for size in sizes.split(","))
    except ValueError as error:
        raise InputError(
            "nested_sizes", f"nested_sizes={sizes} must be whole numbers, such as 10,50"
        ) from error


def as_text(record: dict[str, Any]) -> str:
    """Return a run's record as people read it."""
    classes = record["classes"]
    n_selected, n_images = record["n_selected"], record["n_images"]
    facts = [
        [
            "selected",
            f"{n_selected:,} of {n_images:,} images, from {len(classes):,} {_kind(record)}",
        ],
        *_mean_objective(classes),
        *_nested_sizes(classes),
        ["counts", reconciled(record)],
        *left_out(record),
        ["confidence", CONFIDENCE.get(record["confidence"], record["confidence"])],
        *_remarks(record),
        ["time", f"{record['times']['total_seconds']} s"],
        ["written to", str(Path(record["out"]) / "subset.parquet") + ", paths.txt, run.json"],
    ]
    return f"{_class_table(classes)}\n\n{table(facts)}"


def _kind(record: dict[str, Any]) -> str:
    if record["division"] == "clusters":
        return "clusters"
    return "classes" if len(record["classes"]) > 1 else "class"


def _mean_objective(classes: list[dict[str, Any]]) -> list[list[str]]:
    values = [entry["objective"] / entry["scale"] for entry in classes if entry["n_selected"]]
    if len(values) < 2:
        return []
    return [["objective", f"{sum(values) / len(values):.4f}, the mean of the classes"]]


def _class_table(classes: list[dict[str, Any]]) -> str:
    rows = []
    for entry in classes[:MAX_CLASSES_SHOWN]:
        row = [entry["class_name"], f"{entry['n_images']:,}", f"{entry['n_selected']:,}"]
        if entry["n_selected"]:
            transport = entry["terms"]["transport"]
            gap = entry["transport_gap"] / transport if transport > 0 else 0.0
            scaled = f"{entry['objective'] / entry['scale']:.4f}"
            row += [scaled, f"{gap:.1%}", _swap_optimal(entry)]
        else:
            row += ["", "", ""]
        rows.append(row)
    headers = ["class", "images", "selected", "objective", "gap", "swap-optimal"]
    left = len(classes) - len(rows)
    more = [f"... and {left:,} more classes, all in run.json"] if left else []
    legend = [LEGEND, *([NESTED_LEGEND] if any(entry["nested"] for entry in classes) else [])]
    legend += [PARTITION_LEGEND] if any(e["start"] == "partition" for e in classes) else []
    return "\n".join([table(rows, headers=headers), *more, *legend])


def _swap_optimal(entry: dict[str, Any]) -> str:
    if entry["start"] == "partition":
        return "in cells"
    return "yes" if entry["is_swap_optimal"] else "no"


def _nested_sizes(classes: list[dict[str, Any]]) -> list[list[str]]:
    """Return a row about the smaller subsets: the mean objective of the classes."""
    values: dict[int, list[float]] = {}
    for entry in classes:
        for smaller in entry["nested"]:
            values.setdefault(smaller["n_selected"], []).append(
                smaller["objective"] / entry["scale"]
            )
    if not values:
        return []
    means = {size: sum(values[size]) / len(values[size]) for size in sorted(values)}
    listed = ", ".join(f"first {size}: {mean:.4f}" for size, mean in means.items())
    return [["nested", listed + "; gadc export --first N"]]


def _remarks(record: dict[str, Any]) -> list[list[str]]:
    """Return table rows about what a user may not expect."""
    n_short = sum(entry["n_short"] for entry in record["classes"])
    n_conflicts = len(record["label_conflicts"])
    remarks = []
    if n_short:
        remarks.append(["shortfall", f"{n_short:,} fewer than asked for: classes are too small"])
    if record["n_copies"]:
        remarks.append(
            ["duplicates", f"{record['n_copies']:,} exact copies were left out (--dedup first)"]
        )
    if n_conflicts:
        remarks.append(
            ["conflicts", f"{n_conflicts:,} images are in several classes; listed in run.json"]
        )
    return remarks
