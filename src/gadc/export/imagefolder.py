"""A folder of images with a folder per class, and a line of metadata per image."""

from pathlib import Path

from gadc.export.folder import (
    METADATA_NAME,
    PLAN_NAME,
    FolderExport,
    Layout,
    Placement,
    check_placement,
    selected_images,
    write_folder,
)
from gadc.export.naming import class_folders, file_names
from gadc.images.source import ImageIndex
from gadc.runtime import ProgressStyle
from gadc.subset import Subset


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
    check_placement(placement, index)
    images = selected_images(subset, index)
    folders = class_folders(subset, reserved=(PLAN_NAME, METADATA_NAME))
    layout = Layout("imagefolder", file_names(subset, images, folders), folders=folders)
    return write_folder(
        subset,
        images,
        out,
        layout,
        placement=placement,
        wait_seconds=wait_seconds,
        show=show,
    )
