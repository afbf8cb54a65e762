"""Exports that are a folder with a file per image: written whole, and never the wrong image."""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from gadc.errors import InputError, RunError
from gadc.images.selected import SelectedImages
from gadc.images.source import ImageIndex, examples
from gadc.runtime import ProgressStyle, progress
from gadc.storage import (
    LOCK_NAME,
    OWNER_NAME,
    canonical_json,
    digest,
    escape_name,
    exclusive,
    prepare_output,
    sweep_temporaries,
    write_bytes,
    write_json,
)
from gadc.subset import Subset

Placement = Literal["copy", "hardlink", "symlink"]

SCHEMA_VERSION = 2
PLAN_NAME = "export.json"
METADATA_NAME = "metadata.jsonl"
FILE_KINDS = frozenset(["folder", "flat", "list"])
"""Sources where every image is a file of its own, which a link can point to."""


class LinkError(RunError):
    """A link can't be made where copies may well be."""


@dataclass(frozen=True)
class FolderExport:
    """What an export to a folder did.

    Attributes:
        folder: Where it is.
        n_images: Images in the folder.
        n_written: Those that were not there already.
        n_verified: Those whose SHA-256 is that of the subset; the others had none to compare.
        renamed_classes: Folder name by class name, where they differ.
    """

    folder: Path
    n_images: int
    n_written: int
    n_verified: int
    renamed_classes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Where one format puts the images, and what it writes beside them.

    Attributes:
        form: The name of the format.
        names: Relative POSIX path of each image.
        texts: Text files by relative path, written when all images are there.
        folders: What stands for each class name in the names.
        options: All else that the outcome depends on.
    """

    form: str
    names: list[str]
    texts: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def selected_images(subset: Subset, index: ImageIndex) -> SelectedImages:
    """Find the images of a subset in a source; see `SelectedImages`."""
    return SelectedImages(index, subset.paths, subset.sha256)


def check_placement(placement: Placement, index: ImageIndex) -> None:
    """Refuse links to images that are not files.

    Raises:
        InputError: `bad_choice` or `no_files_to_link`.
    """
    if placement not in get_args(Placement):
        raise InputError(
            "bad_choice", f"placement={placement!r}; use {' or '.join(get_args(Placement))}"
        )
    if placement != "copy" and index.kind not in FILE_KINDS:
        raise InputError(
            "no_files_to_link",
            f"the images of {index.source} are not files of their own; use --copy",
        )


def write_folder(
    subset: Subset,
    images: SelectedImages,
    out: Path,
    layout: Layout,
    *,
    placement: Placement,
    wait_seconds: float,
    show: ProgressStyle,
) -> FolderExport:
    """Bring every image to its place, then write the texts, and `metadata.jsonl` last.

    Beside them stands `export.json`, the plan: a folder that holds another one is left alone, and
    one that an interrupted export left is completed.

    Args:
        subset: What to export.
        images: The same in their source.
        out: A new or empty folder, or one that the same export left unfinished.
        layout: What goes where.
        placement: See `export_imagefolder`.
        wait_seconds: How long to wait for another process that writes to `out`.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: An image is not the one that was selected, or `out` holds something else.
        RunError: A link can't be made, the disk is full, or the lock is held.
    """
    prepare_output(out, images.index.source)
    with exclusive(out, wait_seconds=wait_seconds):
        plan = plan_of(subset, layout, placement=placement)
        claim_folder(out, plan, {METADATA_NAME, *layout.names, *layout.texts})
        n_written = 0
        with progress("export", len(layout.names), style=show) as bar:
            for row, name in enumerate(layout.names):
                try:
                    n_written += _place(images, row, out / name, placement)
                except LinkError:
                    if row == 0:  # the folder is as empty as it was: free for copies
                        (out / PLAN_NAME).unlink()
                    raise
                bar.advance()
        images.raise_if_changed()
        metadata = "".join(metadata_lines(subset, layout.names))
        for name, text in {**layout.texts, METADATA_NAME: metadata}.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_if_different(out / name, text.encode("utf-8", "surrogateescape"))
    renamed = {name: folder for name, folder in layout.folders.items() if name != folder}
    return FolderExport(out, len(layout.names), n_written, images.n_verified, renamed)


def plan_of(subset: Subset, layout: Layout, *, placement: Placement) -> dict[str, Any]:
    """Return what `export.json` holds: equal for exports that give equal folders."""
    return {
        "schema": SCHEMA_VERSION,
        "format": layout.form,
        "placement": placement,
        "n_images": subset.n_images,
        "classes": [
            {"class_name": escape_name(name), "folder": folder}
            for name, folder in layout.folders.items()
        ],
        "options": layout.options,
        "images": digest(
            [layout.names, [escape_name(path) for path in subset.paths], subset.sha256]
        ),
    }


def claim_folder(out: Path, plan: dict[str, Any], names: Collection[str]) -> None:
    """Write `export.json`, unless the folder is in use for anything else.

    Args:
        out: The locked folder.
        plan: Of the export.
        names: All files that the export writes, relative.

    Raises:
        InputError: `output_in_use` or `output_not_empty`.
    """
    path = out / PLAN_NAME
    if path.exists():
        try:
            is_same = json.loads(path.read_bytes()) == plan
        except ValueError:
            is_same = False
        if not is_same:
            raise InputError(
                "output_in_use", f"{out} holds another export; choose a new or empty folder"
            )
        for folder in {(out / name).parent for name in names}:
            sweep_temporaries(folder)  # of a killed run; the one lock is for all of them
    ours = {LOCK_NAME, OWNER_NAME, PLAN_NAME, *names}
    found = (
        os.path.relpath(os.path.join(folder, name), out)
        for folder, _, files in os.walk(out)
        for name in files
    )
    if strangers := sorted(name for name in found if name.replace(os.sep, "/") not in ours):
        raise InputError(
            "output_not_empty",
            f"{out} holds files that are not of this export: {examples(strangers)}; choose a new "
            "or empty folder",
        )
    write_json(path, plan)


def write_if_different(path: Path, content: bytes) -> bool:
    """Write a file unless it is there with this very content; tell whether it was written."""
    if not path.is_symlink() and path.is_file() and path.read_bytes() == content:
        return False
    write_bytes(path, content)
    return True


def metadata_lines(subset: Subset, names: list[str]) -> list[str]:
    """Return a line of JSON per image: where it is, which it was, and what the selection says."""
    return [
        canonical_json({"file_name": name, **image_record(subset, row)}) + "\n"
        for row, name in enumerate(names)
    ]


def image_record(subset: Subset, row: int) -> dict[str, Any]:
    """Return what the selection says of one image, names escaped by `escape_name`."""
    return {
        "label": int(subset.labels[row]),
        "class_name": escape_name(subset.class_name[row]),
        "id": escape_name(subset.paths[row]),
        "rank": int(subset.rank[row]),
        "gain": float(subset.gain[row]),
        "weight": float(subset.weight[row]),
    }


def _place(images: SelectedImages, row: int, target: Path, placement: Placement) -> bool:
    """Bring one image to its place; tell whether it was not there yet."""
    content = images.read(row)
    if content is None:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    if placement == "copy":
        return write_if_different(target, content)
    return _link(Path(os.path.abspath(images.path(row))), target, placement)


def _link(source: Path, target: Path, placement: Placement) -> bool:
    is_there = os.path.lexists(target)
    if placement == "symlink":
        if is_there and target.is_symlink() and target.readlink() == source:
            return False
    elif is_there and not target.is_symlink() and target.samefile(source):
        return False
    target.unlink(missing_ok=True)
    try:
        if placement == "symlink":
            target.symlink_to(source)
        else:
            # A hard link to a symbolic link would be one more symbolic link.
            os.link(source.resolve(), target)
    except OSError as error:
        raise LinkError(
            "link_failed",
            f"can't make a {placement} from {target} to {source}: {error.strerror}; hard "
            "links need one disk for both; use --copy",
        ) from error
    return True
