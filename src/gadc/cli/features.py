"""`gadc features`: from images to features on disk."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gadc.cli import options
from gadc.cli.console import AsJson, emit, session_of, table
from gadc.errors import InputError

if TYPE_CHECKING:
    from gadc.features.store import FeatureSet

EXIT_WITH_QUARANTINE = 3


def features(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="The images: a folder with one folder per class, a folder of images, a parquet "
            "file or a folder of them, tar shards (WebDataset), or a .txt file of paths.",
        ),
    ],
    out: options.OutFolder,
    encoder: options.EncoderName = options.DEFAULT_ENCODER,
    weights: options.Weights = None,
    class_map: options.ClassMapFile = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 64,
    decode_workers: options.DecodeWorkers = 2,
    engine: options.EngineOption = options.Engine.LOCAL,
    address: options.Address = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --engine ray: tasks at the same time; default: one per CPU of the cluster, "
            "or per GPU.",
            rich_help_panel=options.ENGINE,
        ),
    ] = None,
    labels: options.Labels = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    follow_outside: options.FollowOutside = False,
    animated: options.AnimatedOption = options.Animated.FIRST,
    min_side_px: options.MinSide = 1,
    max_pixels: options.MaxPixels = 89_000_000,
    on_error: options.OnErrorOption = options.OnError.QUARANTINE,
    max_bad: options.MaxBad = 0.01,
    strict_exit: options.StrictExit = False,
    wait: options.Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Turn every image into a vector of numbers (its features), once, and keep them on disk.

    `gadc select` does this by itself; run it alone to select several times, or on a machine with a
    GPU. Only images whose content is new are computed when it is run again.

    DIR gets:

    - `features.safetensors`: the tensors `features`, `labels` and `probabilities`
    - `items.parquet`: id, path, SHA-256 and class of each row
    - `quarantine.parquet`, `excluded.parquet`: what was left out, and why
    - `features.json`: settings, versions and checksums
    """
    settings = options.image_settings(
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
    if workers is not None and engine is options.Engine.LOCAL:
        raise InputError("option_unused", f"workers={workers} needs --engine ray")
    from gadc.cluster.connection import check_engine, joined
    from gadc.runs.inputs import extract_features
    from gadc.storage import exclusive, prepare_output

    check_engine(engine.value, address=address, workers=workers, device=device)
    started = time.monotonic()
    with joined(engine.value, address, workers):
        prepare_output(out, data)
        with exclusive(out, wait_seconds=wait):
            pass  # extraction takes the lock itself, at once or not at all
        found = extract_features(
            data,
            out,
            settings,
            engine=engine.value,
            workers=workers,
            show=session_of(context).progress,
        )
    result = summary(found, out, time.monotonic() - started)
    emit(result, _as_text(result), as_json=as_json)
    if strict_exit and found.quarantined:
        raise typer.Exit(EXIT_WITH_QUARANTINE)


def summary(found: "FeatureSet", out: Path, seconds: float) -> dict[str, Any]:
    """Return what a run of the command found, for scripts."""
    from gadc.runs.inputs import count_names

    return {
        "out": str(out),
        "n_scanned": found.n_scanned,
        "n_images": found.n_images,
        "n_quarantined": len(found.quarantined),
        "n_excluded": len(found.excluded),
        "quarantined_by_code": count_names(item.code for item in found.quarantined),
        "excluded_by_reason": count_names(item.reason for item in found.excluded),
        "n_features": found.n_features,
        "n_classes": None if found.labels is None else len(found.class_names),
        "has_probabilities": found.probabilities is not None,
        "n_computed": found.run_counts.get("computed", 0),
        "n_reused": found.run_counts.get("reused", 0),
        "n_corrupt": found.run_counts.get("corrupt", 0),
        "encoder": found.provenance["encoder"]["name"],
        "seconds": round(seconds, 1),
    }


def _as_text(result: dict[str, Any]) -> str:
    n_classes = result["n_classes"]
    rows = [
        ["images", f"{result['n_images']:,}"],
        ["classes", "none" if n_classes is None else f"{n_classes:,}"],
        ["features", f"{result['n_features']} per image, by {result['encoder']}"],
        ["computed now", f"{result['n_computed']:,} in {result['seconds']} s"],
        ["found on disk", f"{result['n_reused']:,}"],
        ["counts", reconciled(result)],
        *left_out(result),
        ["written to", result["out"]],
    ]
    return table(rows)


def reconciled(result: dict[str, Any]) -> str:
    """Return the line that shows that no file was lost."""
    return (
        f"{result['n_scanned']:,} scanned = {result['n_images']:,} usable"
        f" + {result['n_quarantined']:,} quarantined + {result['n_excluded']:,} excluded"
    )


def left_out(result: dict[str, Any]) -> list[list[str]]:
    """Return table rows about bad images and files that are no images."""
    names = {
        "quarantined_by_code": ("quarantined", "quarantine.parquet"),
        "excluded_by_reason": ("excluded", "excluded.parquet"),
    }
    return [
        [title, f"{', '.join(f'{count} {what}' for what, count in result[key].items())} ({file})"]
        for key, (title, file) in names.items()
        if result[key]
    ]
