"""`gadc export`: a subset as other programs want it."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gadc.cli import options
from gadc.cli.console import AsJson, emit, session_of, table
from gadc.errors import InputError

if TYPE_CHECKING:
    from gadc.runs.record import ImageSource
    from gadc.subset import Subset


class Format(StrEnum):
    """What other programs read."""

    IMAGEFOLDER = "imagefolder"
    PATHS = "paths"
    REFERENCE_JSON = "reference-json"
    CSV = "csv"


LINKS = "Only for --as imagefolder"
LISTS = "Only for lists of paths"

Copy = Annotated[
    bool,
    typer.Option(
        "--copy", metavar="", help="Copy the images; this is the default.", rich_help_panel=LINKS
    ),
]
Hardlink = Annotated[
    bool,
    typer.Option(
        "--hardlink",
        metavar="",
        help="Hard links instead of copies: no space, but the same disk, and an edit changes both.",
        rich_help_panel=LINKS,
    ),
]
Symlink = Annotated[
    bool,
    typer.Option(
        "--symlink",
        metavar="",
        help="Symbolic links instead of copies: no space, but they break when the data moves.",
        rich_help_panel=LINKS,
    ),
]


def export(
    context: typer.Context,
    subset: Annotated[
        Path,
        typer.Argument(
            metavar="SUBSET", help="The folder that `gadc select` wrote, or its subset.parquet."
        ),
    ],
    form: Annotated[
        Format,
        typer.Option(
            "--as",
            help="imagefolder: a folder of images with a folder per class; paths: a list, one path "
            "a line; reference-json: the JSON list that GADC's research code reads; csv: a table "
            "for spreadsheets.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="PATH",
            help="For imagefolder a new or empty folder (needed), else a file; without it, lists "
            "go to stdout.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--source",
            metavar="DATA",
            help="Where the images are now, if not where they were selected from.",
        ),
    ] = None,
    first: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Only the first N images of each class in the order of selection; good subsets "
            "themselves where N is one of the sizes of `gadc select --nested`.",
        ),
    ] = None,
    copy: Copy = False,
    hardlink: Hardlink = False,
    symlink: Symlink = False,
    wait: options.Wait = 0.0,
    path_prefix: Annotated[
        str | None,
        typer.Option(
            "--path-prefix",
            metavar="TEXT",
            help="What to put before each path, with a slash between; '' for nothing. By default "
            "the data folder.",
            rich_help_panel=LISTS,
        ),
    ] = None,
    null: Annotated[
        bool,
        typer.Option(
            "--null",
            metavar="",
            help="End each path with a NUL character, for names with line breaks (`xargs -0`).",
            rich_help_panel=LISTS,
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the selected images, or a list of them, in a form that other programs read.

    Every image that is copied or linked is compared with the checksum taken when it was selected:
    a file that has changed since is an error, not another image in your training set.
    """
    _check_options(form, out, copy, hardlink, symlink, path_prefix, null=null, as_json=as_json)
    from gadc.runs.record import image_source
    from gadc.subset import Subset

    chosen = Subset.load(subset)
    if first is not None:
        chosen = chosen.first(first)
    where = image_source(subset, source)
    if form is Format.IMAGEFOLDER:
        if out is None:
            raise InputError("no_output", "--as imagefolder needs --out DIR")
        placement = "hardlink" if hardlink else "symlink" if symlink else "copy"
        result = _to_folder(chosen, where, out, placement, wait, session_of(context).progress)
    else:
        text = _listed(chosen, where, form, path_prefix, null=null)
        if out is None:
            # Bytes: names may not be valid UTF-8.
            sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
            sys.stdout.flush()
            return
        _write(out, text)
        result = {"out": str(out), "format": form.value, "n_images": chosen.n_images}
    emit(result, _as_text(result), as_json=as_json)


def _check_options(
    form: Format,
    out: Path | None,
    copy: bool,
    hardlink: bool,
    symlink: bool,
    path_prefix: str | None,
    *,
    null: bool,
    as_json: bool,
) -> None:
    """Refuse options that contradict each other or can't have an effect."""
    if copy + hardlink + symlink > 1:
        raise InputError("option_conflict", "give only one of --copy, --hardlink and --symlink")
    if copy + hardlink + symlink and form is not Format.IMAGEFOLDER:
        raise InputError("option_unused", "--copy, --hardlink and --symlink need --as imagefolder")
    if path_prefix is not None and form not in (Format.PATHS, Format.REFERENCE_JSON):
        raise InputError("option_unused", "--path-prefix needs --as paths or --as reference-json")
    if null and form is not Format.PATHS:
        raise InputError("option_unused", "--null needs --as paths")
    if as_json and out is None:
        raise InputError("option_conflict", "--json needs --out; the list itself goes to stdout")


def _to_folder(
    chosen: "Subset",
    where: "ImageSource | None",
    out: Path,
    placement: Any,
    wait_seconds: float,
    show: Any,
) -> dict[str, Any]:
    from gadc.export import export_imagefolder

    if where is None:
        raise InputError(
            "source_unknown", "the subset doesn't say where its images are; give --source DATA"
        )
    done = export_imagefolder(
        chosen, where.index(), out, placement=placement, wait_seconds=wait_seconds, show=show
    )
    return {
        "out": str(done.folder),
        "format": Format.IMAGEFOLDER.value,
        "n_images": done.n_images,
        "n_written": done.n_written,
        "n_verified": done.n_verified,
        "placement": placement,
        "renamed_classes": done.renamed_classes,
    }


def _listed(
    chosen: "Subset",
    where: "ImageSource | None",
    form: Format,
    path_prefix: str | None,
    *,
    null: bool,
) -> str:
    from gadc.export import csv_text, listed_paths, paths_text, reference_json

    if form is Format.CSV:
        return csv_text(chosen)
    prefix = path_prefix
    if prefix is None:
        prefix = "" if where is None or not where.path.is_dir() else str(where.path)
    paths = listed_paths(chosen, prefix=prefix)
    return reference_json(paths) if form is Format.REFERENCE_JSON else paths_text(paths, null=null)


def _write(path: Path, text: str) -> None:
    from gadc.storage import write_text

    if path.is_dir():
        raise InputError("output_is_folder", f"output {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError("output_not_writable", f"there is no folder {path.parent}; make it first")
    if path.exists() and not _holds(path, text):
        raise InputError(
            "output_exists", f"{path} exists and holds something else; remove it or name another"
        )
    write_text(path, text)


def _holds(path: Path, text: str) -> bool:
    """Tell whether a file has this very content, as after the same export before."""
    content = text.encode("utf-8", "surrogateescape")
    return path.stat().st_size == len(content) and path.read_bytes() == content


def _as_text(result: dict[str, Any]) -> str:
    rows = [["images", f"{result['n_images']:,}"]]
    if "n_verified" in result:
        n_unverified = result["n_images"] - result["n_verified"]
        rows += [
            ["written now", f"{result['n_written']:,} by {result['placement']}"],
            ["checksums", f"{result['n_verified']:,} equal to those at the selection"],
            *([["", f"{n_unverified:,} had none"]] if n_unverified else []),
            *[
                ["renamed class", f"{name!r} is in the folder {folder}"]
                for name, folder in result["renamed_classes"].items()
            ],
        ]
    return table([*rows, ["written to", result["out"]]])
