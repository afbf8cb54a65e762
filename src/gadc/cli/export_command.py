"""`gadc export`: a subset as other programs want it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gadc.cli import export_options as asking
from gadc.cli import options
from gadc.cli.console import AsJson, emit, session_of, table
from gadc.cli.export_options import Asked, Format
from gadc.errors import InputError

if TYPE_CHECKING:
    from gadc.export import FolderExport
    from gadc.images.source import ImageIndex
    from gadc.runs.record import ImageSource
    from gadc.runtime import ProgressStyle
    from gadc.subset import Subset


def export(
    context: typer.Context,
    subset: options.SubsetPath,
    form: asking.As,
    out: asking.Out = None,
    source: asking.Source = None,
    first: asking.First = None,
    copy: asking.Copy = False,
    hardlink: asking.Hardlink = False,
    symlink: asking.Symlink = False,
    wait: options.Wait = 0.0,
    per_shard: asking.PerShard = None,
    caption_template: asking.CaptionTemplate = None,
    caption_file: asking.CaptionFile = None,
    caption_column: asking.CaptionColumn = None,
    repeats: asking.Repeats = None,
    license_id: asking.License = None,
    sizes: asking.Sizes = None,
    score: asking.Score = None,
    path_prefix: asking.PathPrefix = None,
    null: asking.Null = False,
    as_json: AsJson = False,
) -> None:
    """Write the selected images, or a list of them, in a form that other programs read.

    Every image that is copied or linked is compared with the checksum taken when it was selected:
    a file that has changed since is an error, not another image in your training set.
    """
    asked = Asked(
        form=form,
        out=out,
        source=source,
        copy=copy,
        hardlink=hardlink,
        symlink=symlink,
        wait_seconds=wait,
        per_shard=per_shard,
        caption_template=caption_template,
        caption_file=caption_file,
        caption_column=caption_column,
        repeats=repeats,
        license_id=license_id,
        sizes=sizes,
        score=score,
        path_prefix=path_prefix,
        null=null,
    )
    asked.check(as_json=as_json)
    from gadc.runs.record import image_source
    from gadc.subset import Subset

    chosen = Subset.load(subset)
    if first is not None:
        chosen = chosen.first(first)
    where = image_source(subset, source)
    if form in asking.FOLDERS:
        result = _to_folder(chosen, where, asked, session_of(context).progress)
    elif sizes is not None:
        result = _to_lists(chosen, where, asked)
    else:
        text = _listed(chosen, where, asked)
        if out is None:
            # Bytes: names may not be valid UTF-8.
            sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
            sys.stdout.flush()
            return
        _write(out, text)
        result = {"out": str(out), "format": form.value, "n_images": chosen.n_images}
    emit(result, _as_text(result), as_json=as_json)


def _to_folder(
    chosen: "Subset", where: "ImageSource | None", asked: Asked, show: "ProgressStyle"
) -> dict[str, Any]:
    from gadc.runs.record import needed

    images = needed(where)
    captions = _captions(chosen, asked)
    done = _exported(chosen, images.index(), asked, captions, show)
    return {
        "out": str(done.folder),
        "format": asked.form.value,
        "n_images": done.n_images,
        "n_written": done.n_written,
        "n_verified": done.n_verified,
        "placement": asked.placement,
        "renamed_classes": done.renamed_classes,
    }


def _exported(
    chosen: "Subset",
    index: "ImageIndex",
    asked: Asked,
    captions: list[str] | None,
    show: "ProgressStyle",
) -> "FolderExport":
    from gadc import export as exports

    common: dict[str, Any] = {"wait_seconds": asked.wait_seconds, "show": show}
    if asked.form in asking.FILE_PER_IMAGE:
        common["placement"] = asked.placement
    elif asked.per_shard is not None:
        common["images_per_shard"] = asked.per_shard
    if asked.form in asking.CAPTIONED:
        common["captions"] = captions
    if asked.repeats is not None:
        common["repeats"] = asked.repeats
    if asked.license_id is not None:
        common["license_id"] = asked.license_id
    writers: dict[Format, Callable[..., FolderExport]] = {
        Format.IMAGEFOLDER: exports.export_imagefolder,
        Format.HF: exports.export_huggingface,
        Format.WDS: exports.export_webdataset,
        Format.EDM: exports.export_edm,
        Format.KOHYA: exports.export_kohya,
        Format.FIFTYONE: exports.export_fiftyone,
    }
    return writers[asked.form](chosen, index, asked.folder(), **common)


def _captions(chosen: "Subset", asked: Asked) -> list[str] | None:
    from gadc.export import class_captions, file_captions

    if asked.caption_template is not None:
        return class_captions(chosen, template=asked.caption_template)
    if asked.caption_file is None:
        return None
    if asked.caption_column is None:
        return file_captions(chosen, asked.caption_file)
    return file_captions(chosen, asked.caption_file, column=asked.caption_column)


def _to_lists(chosen: "Subset", where: "ImageSource | None", asked: Asked) -> dict[str, Any]:
    from gadc.export import export_reference_json

    files = export_reference_json(
        chosen, asked.folder(), sizes=asked.size_list(), prefix=_prefix(where, asked)
    )
    return {
        "out": str(asked.out),
        "format": asked.form.value,
        "n_images": chosen.n_images,
        "files": {str(size): str(path) for size, path in files.items()},
    }


def _prefix(where: "ImageSource | None", asked: Asked) -> str:
    """Return what stands before each path: what the user says, or the data folder.

    Raises:
        InputError: `missing_source`: that is not there, so that paths would lead nowhere.
    """
    if asked.path_prefix is not None:
        return asked.path_prefix
    if where is not None and not where.path.exists():
        raise InputError(
            "missing_source",
            f"there is no {where.path}, which the paths would begin with; say by --source where "
            "the images are now, or give --path-prefix",
        )
    return "" if where is None or not where.path.is_dir() else str(where.path)


def _listed(chosen: "Subset", where: "ImageSource | None", asked: Asked) -> str:
    from gadc.export import csv_text, listed_paths, paths_text, reference_json, score_json

    if asked.form is Format.CSV:
        return csv_text(chosen)
    prefix = _prefix(where, asked)
    if asked.form is Format.D2C_SCORES:
        if asked.score is None:
            return score_json(chosen, prefix=prefix)
        return score_json(chosen, score=asked.score.value, prefix=prefix)
    paths = listed_paths(chosen, prefix=prefix)
    if asked.form is Format.REFERENCE_JSON:
        return reference_json(paths)
    return paths_text(paths, null=asked.null)


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
    rows += [[f"{size} of each class", path] for size, path in result.get("files", {}).items()]
    return table([*rows, ["written to", result["out"]]])
