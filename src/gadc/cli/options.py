"""Options that several commands share, with their help."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gadc.runs.inputs import ImageSettings

IMAGES = "Images"
ENCODER = "Encoder"
OUTPUT = "Output"
ENGINE = "Where the work is done"
DEFAULT_ENCODER = "transformers:facebook/dinov2-base"
"""Also in `gadc.features.encoders`, which takes seconds to import; a test compares the two."""


class Animated(StrEnum):
    """What becomes of images with several frames."""

    FIRST = "first"
    SKIP = "skip"


class OnError(StrEnum):
    """What a bad image does."""

    QUARANTINE = "quarantine"
    FAIL = "fail"


class Precision(StrEnum):
    """Of the arithmetic of a network that is trained or sampled from."""

    NO = "no"
    FP16 = "fp16"
    BF16 = "bf16"


class Engine(StrEnum):
    """Where the work is done."""

    LOCAL = "local"
    RAY = "ray"


SubsetPath = Annotated[
    Path,
    typer.Argument(
        metavar="SUBSET", help="The folder that `gadc select` wrote, or its subset.parquet."
    ),
]
Source = Annotated[
    Path | None,
    typer.Option(
        "--source",
        metavar="DATA",
        help="Where the subset's images are now, if not where they were selected from.",
    ),
]
OutFolder = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        help="Folder for the results; created if need be, and outside the data. Running the same "
        "command on it again goes on where it stopped.",
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        help="How long to wait if another gadc process writes to the same folder; 0: not at all, "
        "-1: for ever.",
        rich_help_panel=OUTPUT,
    ),
]
StrictExit = Annotated[
    bool,
    typer.Option(
        "--strict-exit",
        metavar="",
        help="Exit with status 3 instead of 0 if bad images were set aside.",
        rich_help_panel=OUTPUT,
    ),
]
Labels = Annotated[
    bool | None,
    typer.Option(
        "--labels/--no-labels",
        metavar="",
        help="--labels: stop unless the data has classes; --no-labels: ignore them. "
        "By default the classes there are count.",
        show_default=False,
        rich_help_panel=IMAGES,
    ),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column with the images in parquet files; found by its type if not given.",
        rich_help_panel=IMAGES,
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column with the classes in parquet files; found by its name if not given.",
        rich_help_panel=IMAGES,
    ),
]
FollowOutside = Annotated[
    bool,
    typer.Option(
        "--follow-outside",
        metavar="",
        help="Read through symbolic links that lead out of the data folder.",
        rich_help_panel=IMAGES,
    ),
]
AnimatedOption = Annotated[
    Animated,
    typer.Option(
        "--animated",
        help="Images with several frames or pages: take the first, or set the image aside.",
        rich_help_panel=IMAGES,
    ),
]
MinSide = Annotated[
    int,
    typer.Option(
        "--min-side-px",
        metavar="PIXELS",
        help="Set aside images whose shorter side is below this.",
        rich_help_panel=IMAGES,
    ),
]
MaxPixels = Annotated[
    int,
    typer.Option(
        "--max-pixels",
        metavar="PIXELS",
        help="Set aside images with more pixels than this, before decoding them.",
        rich_help_panel=IMAGES,
    ),
]
OnErrorOption = Annotated[
    OnError,
    typer.Option(
        "--on-error",
        help="A bad image is set aside and listed in quarantine.parquet, or it stops the run.",
        rich_help_panel=IMAGES,
    ),
]
MaxBad = Annotated[
    float,
    typer.Option(
        "--max-bad",
        metavar="FRACTION",
        help="Stop if more than this fraction of the images, and more than 20, are bad (0 to 1).",
        rich_help_panel=IMAGES,
    ),
]
EncoderName = Annotated[
    str,
    typer.Option(
        "--encoder",
        metavar="NAME",
        help="What turns an image into numbers. 'pixels' needs no download; 'gadc doctor' lists "
        "the others.",
        rich_help_panel=ENCODER,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The encoder's weights, a .safetensors file, for the encoders that take one.",
        rich_help_panel=ENCODER,
    ),
]
ClassMapFile = Annotated[
    Path | None,
    typer.Option(
        "--class-map",
        metavar="FILE",
        help='JSON file {"my class": "encoder class" or a list of them} for encoders that also '
        "classify. Not needed where the names are equal; without it a classifier is fitted to the "
        "features.",
        rich_help_panel=ENCODER,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Images per step on a GPU; halved by itself when memory runs out.",
        rich_help_panel=ENCODER,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N.",
        rich_help_panel=ENCODER,
    ),
]
DecodeWorkers = Annotated[
    int,
    typer.Option(
        "--decode-workers",
        metavar="N",
        help="Threads that read and decode images.",
        rich_help_panel=ENCODER,
    ),
]


EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="local: on this machine; ray: by the machines of a Ray cluster. The result is the "
        "same.",
        rich_help_panel=ENGINE,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="With --engine ray: the cluster's head, or 'auto' for the one this machine belongs "
        "to. By default what RAY_ADDRESS names, else Ray is started on this machine.",
        rich_help_panel=ENGINE,
    ),
]


def image_settings(
    *,
    encoder: str,
    weights: Path | None,
    class_map: Path | None,
    labels: bool | None,
    image_column: str | None,
    label_column: str | None,
    follow_outside: bool,
    animated: Animated,
    min_side_px: int,
    max_pixels: int,
    on_error: OnError,
    max_bad: float,
    batch_size: int,
    decode_workers: int,
    device: str,
) -> "ImageSettings":
    """Return the options about images as the library takes them."""
    from gadc.runs.inputs import ImageSettings

    return ImageSettings(
        encoder=encoder,
        weights=weights,
        class_map=class_map,
        labels="auto" if labels is None else labels,
        image_column=image_column,
        label_column=label_column,
        follow_outside=follow_outside,
        animated=animated.value,
        min_side_px=min_side_px,
        max_pixels=max_pixels,
        on_error=on_error.value,
        max_bad=max_bad,
        batch_size=batch_size,
        decode_workers=decode_workers,
        device=device,
    )
