"""A subset in the forms that other programs read: a folder of images, or lists of paths."""

import csv
import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gadc.errors import InputError, RunError
from gadc.images.faults import ImageError
from gadc.images.source import ImageIndex, examples, suffix
from gadc.images.structure import identify
from gadc.portable_names import portable_name
from gadc.runtime import ProgressStyle, progress
from gadc.storage import (
    LOCK_NAME,
    OWNER_NAME,
    canonical_json,
    digest,
    escape_name,
    exclusive,
    prepare_output,
    write_bytes,
    write_json,
    write_text,
)
from gadc.subset import Subset

Placement = Literal["copy", "hardlink", "symlink"]

SCHEMA_VERSION = 1
PLAN_NAME = "export.json"
METADATA_NAME = "metadata.jsonl"
FILE_KINDS = frozenset(["folder", "flat", "list"])
"""Sources where every image is a file of its own, which a link can point to."""
UNLABELLED_FOLDER = "images"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What makes spreadsheet programs run a cell's text as a formula."""


@dataclass(frozen=True)
class FolderExport:
    """What `export_imagefolder` did.

    Attributes:
        folder: Where the images are.
        n_images: Images in the folder.
        n_written: Those that were not there already.
        n_verified: Those whose SHA-256 is that of the subset; the others had none to compare.
        renamed_classes: Folder name by class name, where they differ.
    """

    folder: Path
    n_images: int
    n_written: int
    n_verified: int
    renamed_classes: dict[str, str]


def export_imagefolder(
    subset: Subset,
    index: ImageIndex,
    out: Path,
    *,
    placement: Placement = "copy",
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> FolderExport:
    """Write the images of a subset as `out/<class>/<file>`.

    Beside them: `metadata.jsonl`, one line per image, written last, so a folder without it is not
    finished; and `export.json`, which maps class names to folders, since names such as `train`,
    `..` or `a/b` can't be kept. An interrupted export goes on when it is called again.

    Args:
        subset: What to export.
        index: The images it was selected from.
        out: A new or empty folder, or one that the same export left unfinished.
        placement: `copy` the bytes; or link to files, which takes no space: `hardlink` (the same
            disk) or `symlink`. Images in parquet files or tar shards can only be copied.
        wait_seconds: How long to wait for another process that writes to `out`.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: An image is missing in the source or not the one that was selected, links are
            not possible, or `out` holds something else.
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
    positions = _positions(subset, index)
    prepare_output(out, index.source)
    with exclusive(out, wait_seconds=wait_seconds):
        folders = _class_folders(subset)
        names = _file_names(subset, index, positions, folders)
        _write_plan(subset, out, folders, names, placement)
        placer = _Placer(subset, index, out, placement)
        with progress("export", len(names), style=show) as bar:
            for row, name in enumerate(names):
                placer.place(row, positions[row], name)
                bar.advance()
        placer.raise_if_changed()
        write_text(out / METADATA_NAME, "".join(_metadata_lines(subset, names)))
    renamed = {name: folder for name, folder in folders.items() if name != folder}
    return FolderExport(out, len(names), placer.n_written, placer.n_verified, renamed)


def _positions(subset: Subset, index: ImageIndex) -> list[int]:
    """Return where each image of the subset stands in the source."""
    wanted = set(subset.paths)
    places = {name: place for place, name in enumerate(index.ids) if name in wanted}
    if missing := [path for path in subset.paths if path not in places]:
        raise InputError(
            "source_mismatch",
            f"{index.source} lacks {len(missing)} of the {len(subset.paths)} selected images: "
            f"{examples(missing)}; give the source they were selected from",
        )
    return [places[path] for path in subset.paths]


def _class_folders(subset: Subset) -> dict[str, str]:
    taken: set[str] = set()
    names = dict.fromkeys(subset.class_name)
    return {name: portable_name(name, taken=taken) for name in names}


def _file_names(
    subset: Subset, index: ImageIndex, positions: list[int], folders: dict[str, str]
) -> list[str]:
    """Return the place of each image in the export, `<folder>/<file>`."""
    taken: dict[str, set[str]] = {folder: set() for folder in folders.values()}
    names = []
    for path, position, class_name in zip(subset.paths, positions, subset.class_name, strict=True):
        base = path.rsplit("/", 1)[-1]
        if not suffix(base):  # a row of a parquet file: the bytes know their format
            base += f".{(identify(_read(index, position)) or 'bin').lower()}"
        folder = folders[class_name]
        names.append(f"{folder}/{portable_name(base, taken=taken[folder], identity=path)}")
    return names


def _write_plan(
    subset: Subset, out: Path, folders: dict[str, str], names: list[str], placement: Placement
) -> None:
    """Write `export.json`, unless the folder is in use for anything else."""
    classes = [{"class_name": escape_name(name), "folder": folders[name]} for name in folders]
    plan = {
        "schema": SCHEMA_VERSION,
        "placement": placement,
        "n_images": len(names),
        "classes": classes,
        "images": digest([names, [escape_name(path) for path in subset.paths], subset.sha256]),
    }
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
    ours = {LOCK_NAME, OWNER_NAME, PLAN_NAME, METADATA_NAME, *names}
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


class _Placer:
    """Brings one image after the other to its place, and notes those that have changed."""

    def __init__(self, subset: Subset, index: ImageIndex, out: Path, placement: Placement) -> None:
        self._subset, self._index, self._out = subset, index, out
        self._placement = placement
        self.n_written = self.n_verified = 0
        self.changed: list[str] = []

    def place(self, row: int, position: int, name: str) -> None:
        content = _read(self._index, position)
        expected = self._subset.sha256[row]
        if expected is not None:
            if hashlib.sha256(content).hexdigest() != expected:
                self.changed.append(self._subset.paths[row])
                return
            self.n_verified += 1
        target = self._out / name
        target.parent.mkdir(exist_ok=True)
        if self._placement == "copy":
            if target.is_symlink() or not target.is_file() or target.read_bytes() != content:
                write_bytes(target, content)
                self.n_written += 1
        else:
            self._link(Path(os.path.abspath(self._index.path(position))), target)

    def _link(self, source: Path, target: Path) -> None:
        is_there = os.path.lexists(target)
        if self._placement == "symlink":
            if is_there and target.is_symlink() and target.readlink() == source:
                return
        elif is_there and not target.is_symlink() and target.samefile(source):
            return
        target.unlink(missing_ok=True)
        try:
            if self._placement == "symlink":
                target.symlink_to(source)
            else:
                # A hard link to a symbolic link would be one more symbolic link.
                os.link(source.resolve(), target)
        except OSError as error:
            raise RunError(
                "link_failed",
                f"can't make a {self._placement} from {target} to {source}: {error.strerror}; hard "
                "links need one disk for both; use --copy",
            ) from error
        self.n_written += 1

    def raise_if_changed(self) -> None:
        if self.changed:
            raise InputError(
                "source_changed",
                f"{len(self.changed)} images are not the ones that were selected: "
                f"{examples(self.changed)}; select again, or restore them",
            )


def _read(index: ImageIndex, position: int) -> bytes:
    try:
        return index.read(position)
    except ImageError as error:
        raise InputError(
            "source_changed", f"{index.ids[position]}: {error.message}; restore it, or select again"
        ) from error


def _metadata_lines(subset: Subset, names: list[str]) -> list[str]:
    return [
        canonical_json(
            {
                "file_name": name,
                "label": int(subset.labels[row]),
                "class_name": escape_name(subset.class_name[row]),
                "id": escape_name(subset.paths[row]),
                "rank": int(subset.rank[row]),
                "gain": float(subset.gain[row]),
                "weight": float(subset.weight[row]),
            }
        )
        + "\n"
        for row, name in enumerate(names)
    ]


def listed_paths(subset: Subset, *, prefix: str = "") -> list[str]:
    """Return the paths of the selected images, class by class in order of selection.

    Args:
        subset: What to list.
        prefix: Put before each id with a slash between; nothing if empty.
    """
    start = f"{prefix.rstrip('/')}/" if prefix else ""
    return [start + path for path in subset.paths]


def paths_text(paths: list[str], *, null: bool = False) -> str:
    r"""Return a list of paths as text, one a line or, with `null`, each ended by a NUL.

    Raises:
        InputError: A newline in a path, without `null`.
    """
    broken = [path for path in paths if "\n" in path or "\r" in path]
    if broken and not null:
        raise InputError(
            "newline_in_path",
            f"a list of lines can't hold the line break in {examples(broken)}; use --null",
        )
    return "".join(path + ("\0" if null else "\n") for path in paths)


def reference_json(paths: list[str]) -> str:
    """Return paths as the flat JSON list that GADC's research code reads.

    Undecodable bytes of a name become lone surrogates, which Python's `json` reads back.
    """
    return json.dumps(paths, indent=0) + "\n"


def csv_text(subset: Subset) -> str:
    """Return a subset as comma-separated values for spreadsheet programs.

    Text that such a program would run as a formula gets an apostrophe in front.
    """
    columns = {
        "index": subset.index.tolist(),
        "path": [_as_cell(path) for path in subset.paths],
        "sha256": [sha256 or "" for sha256 in subset.sha256],
        "label": subset.labels.tolist(),
        "class_name": [_as_cell(name) for name in subset.class_name],
        "rank": subset.rank.tolist(),
        "gain": subset.gain.tolist(),
        "weight": subset.weight.tolist(),
    }
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _as_cell(text: str) -> str:
    escaped = escape_name(text)
    return f"'{escaped}" if escaped.startswith(FORMULA_STARTS) else escaped
