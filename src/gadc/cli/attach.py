"""`gadc attach`: texts and visual targets of a subset, computed once."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gadc.cli import options
from gadc.cli.console import AsJson, emit, session_of, table
from gadc.errors import InputError

if TYPE_CHECKING:
    from gadc.attach.attach import Attached, TextPart, VisualPart
    from gadc.attach.text import TextEncoder
    from gadc.attach.visual import PatchEncoder
    from gadc.runs.record import ImageSource
    from gadc.subset import Subset

TEXTS = "Texts"
TARGETS = "Visual targets"
RESEARCH = "Files of the published research code"
DEFAULT_TEXT = "google/flan-t5-xl"
DEFAULT_VISUAL = "facebook/dinov2-base"
DEFAULT_TEMPLATE = "a photo of a {class_name}"
"""Also in `gadc.attach`, which takes seconds to import; a test compares them."""


class StoredTypeName(StrEnum):
    """Of the numbers in the file."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class TextPrecision(StrEnum):
    """Of the text encoder."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def attach(
    context: typer.Context,
    subset: options.SubsetPath,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for conditions.safetensors. Default: the subset's own, where `gadc train` "
            "finds it.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="A T5 model: hub id or local folder.", rich_help_panel=TEXTS
        ),
    ] = DEFAULT_TEXT,
    use_text: Annotated[
        bool,
        typer.Option(
            "--use-text/--no-text", metavar="", help="Attach texts.", rich_help_panel=TEXTS
        ),
    ] = True,
    caption_template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The text of an image, with {class_name}, {label} or {rank} in it. Default: "
            f"'{DEFAULT_TEMPLATE}'.",
            show_default=False,
            rich_help_panel=TEXTS,
        ),
    ] = None,
    caption_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A text for each image instead: .csv, .jsonl or .parquet with a column path, id "
            "or file_name.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    caption_column: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Column of --caption-file with the texts.", rich_help_panel=TEXTS
        ),
    ] = "text",
    text_tokens: Annotated[
        int,
        typer.Option(
            "--text-tokens",
            metavar="N",
            help="Tokens of a text; longer ones are cut, with a warning.",
            rich_help_panel=TEXTS,
        ),
    ] = 16,
    text_precision: Annotated[
        TextPrecision,
        typer.Option(
            "--text-precision",
            help="bfloat16 halves the memory of the text encoder.",
            rich_help_panel=TEXTS,
        ),
    ] = TextPrecision.FLOAT32,
    visual: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="A vision transformer: hub id or local folder.",
            rich_help_panel=TARGETS,
        ),
    ] = DEFAULT_VISUAL,
    use_visual: Annotated[
        bool,
        typer.Option(
            "--use-visual/--no-visual",
            metavar="",
            help="Attach visual targets.",
            rich_help_panel=TARGETS,
        ),
    ] = True,
    image_size: Annotated[
        int,
        typer.Option(
            "--image-size",
            metavar="PIXELS",
            help="Side of the square that training will cut from an image: 256 or 512 for the "
            "published models.",
            rich_help_panel=TARGETS,
        ),
    ] = 256,
    token_px: Annotated[
        int,
        typer.Option(
            "--token-px",
            metavar="PIXELS",
            help="Pixels below one token of the model: patch times the factor of the VAE (8).",
            rich_help_panel=TARGETS,
        ),
    ] = 16,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror/--no-mirror",
            metavar="",
            help="Targets of the mirror images too; without them, train with --no-flip.",
            rich_help_panel=TARGETS,
        ),
    ] = True,
    store: Annotated[
        StoredTypeName, typer.Option(help="Number type in the file.", rich_help_panel=TARGETS)
    ] = StoredTypeName.FLOAT16,
    text_from: Annotated[
        Path | None,
        typer.Option(
            "--text-from",
            metavar="DIR",
            help="Take texts from its caption_embeddings/ instead of computing them.",
            rich_help_panel=RESEARCH,
        ),
    ] = None,
    visual_from: Annotated[
        Path | None,
        typer.Option(
            "--visual-from",
            metavar="FILE",
            help="Take targets by its total_json.json instead of computing them.",
            rich_help_panel=RESEARCH,
        ),
    ] = None,
    research: Annotated[
        Path | None,
        typer.Option(
            "--research",
            metavar="DIR",
            help="Also write the conditions as its visual/ and caption_embeddings/.",
            rich_help_panel=RESEARCH,
        ),
    ] = None,
    path_prefix: Annotated[
        str | None,
        typer.Option(
            "--path-prefix",
            metavar="TEXT",
            help="With --research: what stands before each path. Default: the data folder.",
            show_default=False,
            rich_help_panel=RESEARCH,
        ),
    ] = None,
    source: options.Source = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 64,
    wait: options.Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Compute what images are trained with beside their class, and store it beside the subset.

    Texts go through the encoder of a T5 model, once for each different text. Images go through a
    vision transformer at the size at which its patches are the tokens of the diffusion model, as
    they are and mirrored, so that image and target never disagree. Training works without either.

    Running the same command again goes on where it stopped; what is unchanged is kept.
    """
    from gadc.attach.attach import attach as run
    from gadc.runs.record import image_source, needed
    from gadc.subset import Subset

    _check(use_text, use_visual, caption_template, caption_file, text_from, visual_from)
    if path_prefix is not None and research is None:
        raise InputError("option_unused", "--path-prefix needs --research")
    chosen = Subset.load(subset)
    where = image_source(subset, source)
    texts: TextEncoder | TextPart | None = None
    targets: PatchEncoder | VisualPart | None = None
    captions = None
    if text_from is not None:
        texts = _texts_of(chosen, text_from)
    elif use_text:
        captions = _captions(chosen, caption_template, caption_file, caption_column)
        texts = _text_encoder(text, text_tokens, text_precision.value, device)
    if visual_from is not None:
        targets = _targets_of(chosen, visual_from)
    elif use_visual:
        needed(where)
        targets = _patch_encoder(visual, image_size, token_px, device)
    needs_images = use_visual and visual_from is None
    found = run(
        chosen,
        out or (subset if subset.is_dir() else subset.parent),
        index=where.index() if where is not None and needs_images else None,
        captions=captions,
        text=texts,
        visual=targets,
        mirrored=mirror,
        stored_type=store.value,
        batch_size=batch_size,
        wait_seconds=wait,
        show=session_of(context).progress,
    )
    result = summary(found)
    if research is not None:
        result["research"] = _write_research(chosen, found, research, where, path_prefix)
    emit(result, _as_text(result), as_json=as_json)


def _check(
    use_text: bool,
    use_visual: bool,
    caption_template: str | None,
    caption_file: Path | None,
    text_from: Path | None,
    visual_from: Path | None,
) -> None:
    if caption_template is not None and caption_file is not None:
        raise InputError("option_conflict", "give --caption-template or --caption-file, not both")
    is_captioned = caption_template is not None or caption_file is not None
    if is_captioned and (text_from is not None or not use_text):
        raise InputError("option_unused", "captions need texts to be computed")
    if not use_text and text_from is not None:
        raise InputError("option_conflict", "--no-text and --text-from exclude each other")
    if not use_visual and visual_from is not None:
        raise InputError("option_conflict", "--no-visual and --visual-from exclude each other")


def _captions(chosen: "Subset", template: str | None, file: Path | None, column: str) -> list[str]:
    from gadc.export import class_captions, file_captions

    if file is not None:
        return file_captions(chosen, file, column=column)
    return class_captions(chosen, template=template or DEFAULT_TEMPLATE)


def _text_encoder(name: str, n_tokens: int, precision: Any, device: str) -> "TextEncoder":
    from gadc.attach.text import load_text_encoder
    from gadc.runtime import pick_device

    return load_text_encoder(
        name, device=pick_device(device), n_tokens=n_tokens, precision=precision
    )


def _patch_encoder(name: str, image_size: int, token_px: int, device: str) -> "PatchEncoder":
    from gadc.attach.visual import load_patch_encoder
    from gadc.runtime import pick_device

    return load_patch_encoder(
        name, device=pick_device(device), image_size_px=image_size, token_px=token_px
    )


def _texts_of(chosen: "Subset", folder: Path) -> "TextPart":
    from gadc.attach.research_files import read_texts

    return read_texts(chosen, folder)


def _targets_of(chosen: "Subset", listing: Path) -> "VisualPart":
    from gadc.attach.research_files import read_targets

    return read_targets(chosen, listing)


def _write_research(
    chosen: "Subset",
    found: "Attached",
    folder: Path,
    where: "ImageSource | None",
    prefix: str | None,
) -> list[str]:
    from gadc.attach.research_files import write_research_files
    from gadc.export import listed_paths

    if prefix is None:
        prefix = "" if where is None or not where.path.is_dir() else str(where.path)
    paths = listed_paths(chosen, prefix=prefix)
    return [
        str(path) for path in write_research_files(chosen, found.conditions, folder, paths=paths)
    ]


def summary(found: "Attached") -> dict[str, Any]:
    """Return what a run of the command found, for scripts."""
    text, visual = found.conditions.text, found.conditions.visual
    return {
        "out": str(found.path),
        "n_images": len(found.conditions.ids),
        "text": None if text is None else list(text.shape),
        "visual": None if visual is None else list(visual.shape),
        "n_texts_computed": found.n_texts_computed,
        "n_images_computed": found.n_images_computed,
    }


def _as_text(result: dict[str, Any]) -> str:
    rows = [["images", f"{result['n_images']:,}"]]
    if result["text"] is not None:
        n_texts, n_tokens, width = result["text"]
        now = f"{result['n_texts_computed']:,} computed now"
        rows.append(["texts", f"{n_texts:,} of {n_tokens} tokens x {width}, {now}"])
    if result["visual"] is not None:
        n_images, n_orientations, n_tokens, width = result["visual"]
        now = f"{result['n_images_computed']:,} computed now"
        both = (
            "both orientations" if n_orientations > 1 else "one orientation: train with --no-flip"
        )
        rows.append(["targets", f"{n_images:,} of {n_tokens} tokens x {width}, {both}, {now}"])
    rows += [["research files", folder] for folder in result.get("research", [])]
    return table([*rows, ["written to", result["out"]]])
