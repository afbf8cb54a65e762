"""`gadc evaluate`: how good generated images are, and whether they are copies."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gadc.cli import options
from gadc.cli.console import AsJson, emit, session_of, table
from gadc.errors import InputError

if TYPE_CHECKING:
    from gadc.evaluation.judged import Judged

MEMORISATION = "Memorisation"
PROTOCOL = "Protocol"


class RuleName(StrEnum):
    """How near-copies are told."""

    RATIO = "ratio"
    CALIBRATED = "calibrated"


def evaluate(
    context: typer.Context,
    samples: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES",
            help="The generated images: a folder (such as `gadc sample` writes), or an .npz file "
            "with arr_0, as ADM's evaluator takes it.",
        ),
    ],
    reference: Annotated[
        Path,
        typer.Option(
            metavar="REF",
            help="What they are judged by: images, features, or a reference .npz of ADM's.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for the results. Default: SAMPLES-evaluation, beside SAMPLES.",
            show_default=False,
        ),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            metavar="SUBSET",
            help="What the model was trained on: the folder that `gadc select` wrote, or images.",
            rich_help_panel=MEMORISATION,
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--held-out",
            metavar="DATA",
            help="Images like those, but never trained on; needed with --training. Those that are "
            "training images too are left out.",
            rich_help_panel=MEMORISATION,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Where the subset's images are now, if not where they were selected from.",
            rich_help_panel=MEMORISATION,
        ),
    ] = None,
    rule: Annotated[
        RuleName,
        typer.Option(
            help="ratio: three times nearer to a training image than to a held-out one; "
            "calibrated: nearer than 99 % of held-out images are.",
            rich_help_panel=MEMORISATION,
        ),
    ] = RuleName.RATIO,
    encoder: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Whose features are compared: inception (FID, sFID, Inception Score), dinov2, "
            "cifar10-resnet56, pixels, or any other of `gadc doctor`.",
            rich_help_panel=PROTOCOL,
        ),
    ] = "inception",
    weights: options.Weights = None,
    size_px: Annotated[
        int | None,
        typer.Option(
            "--size-px",
            metavar="PIXELS",
            help="Scale and crop all images to this square first. Default: all must have the size "
            "of the generated ones.",
            show_default=False,
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    pairwise_images: Annotated[
        int | None,
        typer.Option(
            "--pairwise-images",
            metavar="N",
            help="KID, precision, recall, density and coverage compare at most N images of either "
            "set, drawn by --seed. Default: all.",
            show_default=False,
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", rich_help_panel=PROTOCOL)] = 0,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 64,
    decode_workers: options.DecodeWorkers = 2,
    wait: options.Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Compare generated images with real ones, and with those the model was trained on.

    DIR gets:

    - `evaluation.json`: every number, and the protocol: encoder, weights, sizes, digests
    - `memorisation.png`: the generated images that are nearest to training images
    - `generated/`, `real/` and so on: features, which the next evaluation finds again
    """
    from gadc.evaluation.evaluate import EvaluationSettings, load_judge
    from gadc.evaluation.evaluate import evaluate as run

    if source is not None and training is None:
        raise InputError("option_unused", "--source needs --training")
    found = run(
        _images(samples, "generated"),
        _images(reference, "real"),
        out or _beside(samples),
        load=lambda: load_judge(encoder, weights=weights, device=device),
        training=None if training is None else _training(training, source),
        held_out=None if held_out is None else _images(held_out, "held_out"),
        settings=EvaluationSettings(
            size_px=size_px,
            pairwise_images=pairwise_images,
            rule=rule.value,
            seed=seed,
            batch_size=batch_size,
            decode_workers=decode_workers,
            device=device,
        ),
        wait_seconds=wait,
        show=session_of(context).progress,
    )
    result = {"out": str(found.out), **found.result}
    emit(result, _as_text(result), as_json=as_json)


def _beside(samples: Path) -> Path:
    # Absolute: the name of the current folder is not in ".".
    whole = samples.absolute()
    return whole.with_name(f"{whole.name.removesuffix('.npz')}-evaluation")


def _images(path: Path, name: str) -> "Judged":
    """Return what a path holds; a selection is no images."""
    from gadc.evaluation.judged import open_judged
    from gadc.subset import SUBSET_NAME

    if path.name == SUBSET_NAME or (path / SUBSET_NAME).is_file():
        raise InputError(
            "bad_reference",
            f"{path} is a selection, whose images lie elsewhere; name them, or write them with "
            "`gadc export --as imagefolder`",
        )
    return open_judged(path, name)


def _training(training: Path, source: Path | None) -> "Judged":
    """Return the images of a subset, each to be verified, or images that are no subset."""
    from gadc.evaluation.judged import of_index, open_judged
    from gadc.images.part import part_of
    from gadc.runs.record import image_source, needed
    from gadc.subset import SUBSET_NAME, Subset

    is_subset = training.name == SUBSET_NAME or (training / SUBSET_NAME).is_file()
    if not is_subset:
        if source is not None:
            raise InputError("option_unused", f"--source needs a subset; {training} is none")
        return open_judged(training, "training")
    chosen = Subset.load(training)
    where = needed(image_source(training, source))
    return of_index(part_of(where.index(), chosen.paths, chosen.sha256), "training")


def _as_text(result: dict[str, Any]) -> str:
    rows = []
    for score in result["scores"].values():
        value = "-" if score["value"] is None else f"{score['value']:.4f}"
        if "sd" in score["details"]:
            value += f" ± {score['details']['sd']:.4f}"
        rows.append([score["title"], value, f"{score['better']} is better", score["note"]])
    copied = result["memorisation"]
    if copied is not None:
        by_chance = f"by chance {copied['near_copies_by_chance']:.2%}"
        rows.append(["Near-copies", f"{copied['near_copies']:.2%}", "lower is better", by_chance])
        by_chance = f"by chance {copied['closer_by_chance']:.2%}"
        closer = f"{copied['closer_to_training']:.2%}"
        rows.append(["Closer to training images", closer, "lower is better", by_chance])
    sizes = ", ".join(
        f"{name} {'?' if described['n_images'] is None else format(described['n_images'], ',')}"
        for name, described in result["protocol"]["sets"].items()
    )
    encoder = result["protocol"]["encoder"]
    lines = [
        table(rows, headers=["measure", "value", "", ""]),
        "",
        f"encoder   {'not known' if encoder is None else encoder['name']}",
        f"images    {sizes}",
        f"written   {result['out']}",
    ]
    return "\n".join(lines)
