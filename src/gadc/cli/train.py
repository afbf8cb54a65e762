"""`gadc train`: a diffusion model from a subset, or from any images."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gadc.cli import options
from gadc.cli.console import AsJson, emit, session_of, table
from gadc.errors import InputError

if TYPE_CHECKING:
    from gadc.training.images import TrainingImages

MODEL = "Model"
STEPS = "Steps"
MACHINE = "Where and how it runs"


class SpaceName(StrEnum):
    """Where diffusion takes place."""

    LATENT = "latent"
    PIXEL = "pixel"


class TrackerName(StrEnum):
    """Where losses go beside `losses.jsonl`."""

    NONE = "none"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


def train(
    context: typer.Context,
    subset: Annotated[
        Path,
        typer.Argument(
            metavar="SUBSET",
            help="The folder that `gadc select` wrote, or its subset.parquet; or any source of "
            "images that `gadc select` reads, to train on all of it.",
        ),
    ],
    out: options.OutFolder,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="DiT (diffusion) or SiT (flow), size T, S, B, L or XL, and patch: DiT-L/2.",
            rich_help_panel=MODEL,
        ),
    ] = "DiT-L/2",
    space: Annotated[
        SpaceName,
        typer.Option(
            help="latent: of a VAE, encoded once; pixel: the images themselves, for small ones.",
            rich_help_panel=MODEL,
        ),
    ] = SpaceName.LATENT,
    resolution_px: Annotated[
        int,
        typer.Option(
            "--resolution-px",
            metavar="PIXELS",
            help="Side of the square cut from each image.",
            rich_help_panel=MODEL,
        ),
    ] = 256,
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Hub id or folder of an AutoencoderKL in safetensors. Default: "
            "stabilityai/sd-vae-ft-ema.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    conditional: Annotated[
        bool,
        typer.Option(
            "--conditional/--unconditional",
            metavar="",
            help="Whether the model is told the class of an image.",
            rich_help_panel=MODEL,
        ),
    ] = True,
    conditions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Texts and visual targets that `gadc attach` wrote; those beside the subset are "
            "found by themselves.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    use_text: Annotated[
        bool, typer.Option("--text/--no-text", metavar="", help="Use texts.", rich_help_panel=MODEL)
    ] = True,
    projection_weight: Annotated[
        float,
        typer.Option(
            "--projection-weight",
            metavar="X",
            help="Weight of the alignment with visual targets; 0 for none.",
            rich_help_panel=MODEL,
        ),
    ] = 0.5,
    projection_depth: Annotated[
        int | None,
        typer.Option(
            "--projection-depth",
            metavar="N",
            help="Block whose tokens are aligned. Default: the eighth, or the last.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    source: options.Source = None,
    first: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Only the first N images of each class in order of selection."
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(metavar="N", help="Optimiser steps in all.", rich_help_panel=STEPS)
    ] = 100_000,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            metavar="N",
            help="Images of a step, on all devices together.",
            rich_help_panel=STEPS,
        ),
    ] = 128,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate", metavar="X", help="Of AdamW, constant.", rich_help_panel=STEPS
        ),
    ] = 1e-4,
    warmup_steps: Annotated[
        int,
        typer.Option(
            "--warmup-steps",
            metavar="N",
            help="Over which the rate rises from 0.",
            rich_help_panel=STEPS,
        ),
    ] = 0,
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", metavar="X", help="Of AdamW.", rich_help_panel=STEPS)
    ] = 0.0,
    grad_clip: Annotated[
        float,
        typer.Option(
            "--grad-clip",
            metavar="X",
            help="Largest norm of the gradient; 0: no limit.",
            rich_help_panel=STEPS,
        ),
    ] = 1.0,
    drop_probability: Annotated[
        float,
        typer.Option(
            "--drop-probability",
            metavar="P",
            help="Share of images trained without class and text, both at once.",
            rich_help_panel=STEPS,
        ),
    ] = 0.1,
    flip: Annotated[
        bool,
        typer.Option(
            "--flip/--no-flip", metavar="", help="Mirror half of the images.", rich_help_panel=STEPS
        ),
    ] = True,
    ema_decays: Annotated[
        list[float] | None,
        typer.Option(
            "--ema-decays",
            metavar="DECAY",
            help="Keep an average of the weights with this decay; may be given several times. "
            "Default: 0.9999.",
            show_default=False,
            rich_help_panel=STEPS,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of weights, images and noise.", rich_help_panel=STEPS)
    ] = 0,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch",
            metavar="N",
            help="At most N images at a time on each device, gradients added up: less memory.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    precision: Annotated[
        options.Precision,
        typer.Option(help="Mixed precision; bf16 needs a recent GPU.", rich_help_panel=MACHINE),
    ] = options.Precision.NO,
    compile: Annotated[
        bool,
        typer.Option("--compile", metavar="", help="Use torch.compile.", rich_help_panel=MACHINE),
    ] = False,
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="auto or cpu; several GPUs: `accelerate launch -m gadc.cli train ...`.",
            rich_help_panel=MACHINE,
        ),
    ] = "auto",
    log_every: Annotated[
        int,
        typer.Option(
            "--log-every", metavar="N", help="Steps between two losses.", rich_help_panel=MACHINE
        ),
    ] = 100,
    checkpoint_every: Annotated[
        int,
        typer.Option(
            "--checkpoint-every",
            metavar="N",
            help="Steps between two checkpoints.",
            rich_help_panel=MACHINE,
        ),
    ] = 10_000,
    preview_every: Annotated[
        int,
        typer.Option(
            "--preview-every",
            metavar="N",
            help="Steps between two grids of samples; 0: none.",
            rich_help_panel=MACHINE,
        ),
    ] = 10_000,
    tracker: Annotated[
        TrackerName,
        typer.Option(help="Where losses go beside losses.jsonl.", rich_help_panel=MACHINE),
    ] = TrackerName.TENSORBOARD,
    wait: options.Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Train a diffusion or flow transformer on the selected images.

    Running the same command again goes on where it stopped, even after a power cut: what comes out
    is what would have come out. A longer run is the same command with more --steps.

    DIR gets:

    - `checkpoints/`: the last two, in safetensors
    - `losses.jsonl`: a line every --log-every steps; `trackers/` the same for TensorBoard
    - `previews/`: grids of samples
    - `latents-*.safetensors`: the images as the VAE encodes them
    - `training.json`: settings, versions and checksums
    """
    from gadc.sampling.preview import GridWriter
    from gadc.training.conditions import Conditions, find_conditions
    from gadc.training.config import DEFAULT_VAE, TrainConfig
    from gadc.training.loop import as_json as result_as_json
    from gadc.training.loop import train as train_model

    if space is SpaceName.PIXEL and vae is not None:
        raise InputError("option_unused", "--vae needs --space latent")
    config = TrainConfig(
        model=model,
        space=space.value,
        resolution_px=resolution_px,
        vae=None if space is SpaceName.PIXEL else vae or DEFAULT_VAE,
        steps=steps,
        batch_size=batch_size,
        micro_batch=micro_batch,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        grad_clip=grad_clip or None,
        drop_probability=drop_probability,
        flip=flip,
        conditional=conditional,
        use_text=use_text,
        projection_weight=projection_weight,
        projection_depth=projection_depth,
        ema_decays=(0.9999,) if ema_decays is None else tuple(ema_decays),
        precision=precision.value,
        compile=compile,
        seed=seed,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        preview_every=preview_every,
        tracker=tracker.value,
    )
    images = _images(subset, source, first)
    file = find_conditions(conditions, subset)
    found = None if file is None else Conditions.load(file)
    if projection_depth is not None and (found is None or found.visual is None):
        raise InputError(
            "option_unused",
            "--projection-depth needs visual targets; run `gadc attach` on the subset first",
        )
    result = train_model(
        images,
        config,
        out,
        conditions=found,
        preview=GridWriter() if preview_every else None,
        device=device,
        wait_seconds=wait,
        show=session_of(context).progress,
    )
    shown = {"out": str(out), "n_images": images.n_images, **result_as_json(result)}
    emit(shown, _as_text(shown), as_json=as_json)


def _images(subset: Path, source: Path | None, first: int | None) -> "TrainingImages":
    """Return the images of a subset or, where there is no subset, of a source of images."""
    from gadc.subset import METADATA_KEY, SUBSET_NAME, Subset
    from gadc.training.images import images_of_index, images_of_subset

    if not subset.exists():
        raise InputError("missing_source", f"there is no {subset}; check the path")
    file = subset / SUBSET_NAME if subset.is_dir() else subset
    if not (file.is_file() and _is_subset(file, METADATA_KEY)):
        if source is not None or first is not None:
            raise InputError(
                "option_unused", f"--source and --first need a subset; {subset} is none"
            )
        from gadc.images.index import open_index

        return images_of_index(open_index(subset))
    from gadc.runs.record import image_source, needed

    chosen = Subset.load(subset)
    if first is not None:
        chosen = chosen.first(first)
    return images_of_subset(chosen, needed(image_source(subset, source)).index())


def _is_subset(file: Path, key: bytes) -> bool:
    """Tell a subset from a parquet file of images."""
    if file.suffix != ".parquet":
        return False
    import pyarrow
    import pyarrow.parquet

    try:
        return key in (pyarrow.parquet.read_schema(file).metadata or {})
    except (OSError, pyarrow.ArrowException):
        return True  # `Subset.load` has the better error


def _as_text(result: dict[str, Any]) -> str:
    rows = [
        ["images", f"{result['n_images']:,}"],
        ["steps", f"{result['step']:,}, {result['n_steps']:,} of them now"],
    ]
    if result["loss"] is not None:
        rows.append(["loss", f"{result['loss']:.4f}"])
    if result["images_per_second"] is not None:
        rows.append(["images per second", f"{result['images_per_second']:,.1f}"])
    if result["flops_share"] is not None:
        rows.append(["of the peak flops", f"{result['flops_share']:.1%}"])
    return table([*rows, ["checkpoint", result["checkpoint"]]])
