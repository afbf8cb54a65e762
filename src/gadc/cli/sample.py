"""`gadc sample`: images from a trained model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gadc.cli import options
from gadc.cli.console import AsJson, emit, session_of, table

GUIDANCE = "Guidance"
LABELS = "Classes"
MACHINE = "Where and how it runs"


class SamplerName(StrEnum):
    """Ways from noise to image."""

    DDPM = "ddpm"
    DDIM = "ddim"
    EULER = "euler"
    HEUN = "heun"
    EULER_MARUYAMA = "euler-maruyama"


class LabellingName(StrEnum):
    """How classes are chosen."""

    BALANCED = "balanced"
    RANDOM = "random"


class FormName(StrEnum):
    """What is written."""

    PNG = "png"
    NPZ = "npz"


def sample(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that `gadc train` wrote.")],
    out: options.OutFolder,
    n_samples: Annotated[
        int, typer.Option("--n-samples", "-n", metavar="N", help="How many images.")
    ] = 50_000,
    sampler: Annotated[
        SamplerName | None,
        typer.Option(
            help="ddpm (default) or ddim for DiT; euler (default), heun or euler-maruyama for SiT.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps from noise to image.")] = 250,
    seed: Annotated[
        int, typer.Option(help="Of the images; image i depends on it and i alone.")
    ] = 0,
    ema: Annotated[
        float | None,
        typer.Option(
            metavar="DECAY",
            help="Which average of the weights; 0: the weights themselves. Default: the first.",
            show_default=False,
        ),
    ] = None,
    cfg_scale: Annotated[
        float,
        typer.Option(
            "--cfg-scale",
            metavar="X",
            help="How much classes and texts are stressed; 1: as trained.",
            rich_help_panel=GUIDANCE,
        ),
    ] = 1.5,
    interval: Annotated[
        tuple[float, float],
        typer.Option(
            metavar="FROM TO",
            help="Times at which guidance acts, from 0 (image) to 1 (noise).",
            rich_help_panel=GUIDANCE,
        ),
    ] = (0.0, 1.0),
    channels: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Guide the first N channels only; published DiT numbers guide 3. Default: all.",
            show_default=False,
            rich_help_panel=GUIDANCE,
        ),
    ] = None,
    labels: Annotated[
        LabellingName,
        typer.Option(
            help="balanced: every class equally often; random: drawn.", rich_help_panel=LABELS
        ),
    ] = LabellingName.BALANCED,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME",
            help="Only this class; may be given several times.",
            rich_help_panel=LABELS,
        ),
    ] = None,
    form: Annotated[
        FormName,
        typer.Option(
            "--as",
            help="png: a folder of images; npz: also samples.npz for ADM's evaluator.",
        ),
    ] = FormName.PNG,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            metavar="N",
            help="Images at a time; halved by itself when a GPU's memory runs out.",
            rich_help_panel=MACHINE,
        ),
    ] = 64,
    precision: Annotated[
        options.Precision, typer.Option(help="Of the network.", rich_help_panel=MACHINE)
    ] = options.Precision.NO,
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="auto, cpu, cuda or cuda:N; several GPUs: `torchrun -m gadc.cli sample ...`.",
            rich_help_panel=MACHINE,
        ),
    ] = "auto",
    wait: options.Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Make images with a trained model.

    Every image has noise of its own: image 17 is the same in a run of 20 and in one of 50,000.
    Running the same command again goes on where it stopped.

    DIR gets `images/000000.png` and so on, and `samples.json`: settings, and the class of each.
    """
    from gadc.sampling.config import SampleConfig
    from gadc.sampling.generate import sample as make_samples

    config = SampleConfig(
        n_samples=n_samples,
        sampler=None if sampler is None else sampler.value,
        steps=steps,
        cfg_scale=cfg_scale,
        interval=interval,
        channels=channels,
        labels=labels.value,
        classes=tuple(classes) if classes else None,
        ema=ema,
        seed=seed,
        precision=precision.value,
    )
    found = make_samples(
        run,
        config,
        out,
        form=form.value,
        batch_size=batch_size,
        device=device,
        wait_seconds=wait,
        show=session_of(context).progress,
    )
    result = {
        "out": str(found.out),
        "images": str(found.images),
        "n_samples": found.n_samples,
        "n_made": found.n_made,
        "step": found.step,
        "is_complete": found.is_complete,
    }
    emit(result, _as_text(result), as_json=as_json)


def _as_text(result: dict[str, Any]) -> str:
    rows = [
        ["images", f"{result['n_samples']:,}, {result['n_made']:,} of them made now"],
        ["weights of step", f"{result['step']:,}"],
    ]
    if not result["is_complete"]:
        rows.append(["not finished", "other processes still make their part"])
    return table([*rows, ["written to", result["images"]]])
