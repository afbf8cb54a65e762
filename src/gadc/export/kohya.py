"""The layout that kohya's sd-scripts and their kin train on: repeats, and a caption per image."""

from pathlib import Path

from gadc.errors import InputError
from gadc.export.captions import check_captions, class_captions
from gadc.export.folder import (
    FolderExport,
    Layout,
    Placement,
    check_placement,
    selected_images,
    write_folder,
)
from gadc.export.naming import class_folders, common_suffixes, unique_stems
from gadc.images.source import ImageIndex, examples
from gadc.runtime import ProgressStyle
from gadc.storage import digest
from gadc.subset import Subset

READ_SUFFIXES = frozenset([".png", ".jpg", ".webp", ".bmp"])
"""Files of other suffixes are left out by the trainer without a word."""


def export_kohya(
    subset: Subset,
    index: ImageIndex,
    out: Path,
    *,
    captions: list[str] | None = None,
    repeats: int = 1,
    placement: Placement = "copy",
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> FolderExport:
    """Write `out/<repeats>_<class>/<name>.png` with its caption in `<name>.txt`.

    `out` is the trainer's `train_data_dir`.

    Args:
        subset: What to export.
        index: The images it was selected from.
        out: A new or empty folder, or one that the same export left unfinished.
        captions: One line per image; default: the name of its class. See `class_captions` and
            `file_captions`.
        repeats: How often an epoch shows each image.
        placement: See `export_imagefolder`; captions are files in any case.
        wait_seconds: How long to wait for another process that writes to `out`.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: As `export_imagefolder`; `export_cannot_hold`: a format that the trainer would
            leave out, or a caption that is empty, of several lines or not valid Unicode;
            `repeats_range`: `repeats` is below 1.
    """
    if repeats < 1:
        raise InputError("repeats_range", f"repeats={repeats} must be at least 1")
    check_placement(placement, index)
    captions = class_captions(subset) if captions is None else captions
    check_captions(captions, subset, form="kohya", has_lines=False)
    images = selected_images(subset, index)
    suffixes = common_suffixes(subset, images)
    if unread := [
        path
        for path, suffix in zip(subset.paths, suffixes, strict=True)
        if suffix not in READ_SUFFIXES
    ]:
        raise InputError(
            "export_cannot_hold",
            f"--as kohya can't hold {len(unread)} of the images: {examples(unread)}; its trainer "
            f"reads {' '.join(sorted(READ_SUFFIXES))} only; convert them, or use --as imagefolder",
        )
    folders = class_folders(subset, prefix=f"{repeats}_")
    stems = unique_stems(subset, [folders[name] for name in subset.class_name])
    layout = Layout(
        "kohya",
        [stem + suffix for stem, suffix in zip(stems, suffixes, strict=True)],
        texts={
            f"{stem}.txt": f"{caption}\n" for stem, caption in zip(stems, captions, strict=True)
        },
        folders=folders,
        options={"repeats": repeats, "captions": digest(captions)},
    )
    done = write_folder(
        subset,
        images,
        out,
        layout,
        placement=placement,
        wait_seconds=wait_seconds,
        show=show,
    )
    # That the number stands in front is no other name.
    start = f"{repeats}_"
    renamed = {
        name: folder
        for name, folder in done.renamed_classes.items()
        if folder.removeprefix(start) != name
    }
    return FolderExport(done.folder, done.n_images, done.n_written, done.n_verified, renamed)
