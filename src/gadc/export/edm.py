"""The layout that EDM, and REPA after it, train on: `images/` and `dataset.json`."""

import json
from pathlib import Path

from gadc.export.folder import (
    FolderExport,
    Layout,
    Placement,
    check_placement,
    selected_images,
    write_folder,
)
from gadc.export.naming import common_suffixes
from gadc.images.source import ImageIndex
from gadc.runtime import ProgressStyle
from gadc.subset import Subset

IMAGES_FOLDER = "images"
LABELS_NAME = "dataset.json"
IMAGES_PER_FOLDER = 1_000
"""As in the folders that EDM's own preparation writes."""


def export_edm(
    subset: Subset,
    index: ImageIndex,
    out: Path,
    *,
    placement: Placement = "copy",
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> FolderExport:
    """Write `out/images/00000/img00000000.png` and so on, class by class in order of selection.

    `dataset.json` is `{"labels": [[file name, class number], ...]}`. One lies in `out`, for a
    trainer that is given `out`; one in `out/images`, for tools that are given the images alone,
    such as those that encode them to `vae-sd/`. Images keep their bytes: where the trainer wants
    all of one square size, let its preparation tool make them from this folder.

    Args:
        subset: What to export.
        index: The images it was selected from.
        out: A new or empty folder, or one that the same export left unfinished.
        placement: See `export_imagefolder`.
        wait_seconds: How long to wait for another process that writes to `out`.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: As `export_imagefolder`.

    Source: Karras et al. (2022), "Elucidating the Design Space of Diffusion-Based Generative
    Models", the format of its data sets; Yu et al. (2025), REPA, which adds `vae-sd/`.
    """
    check_placement(placement, index)
    images = selected_images(subset, index)
    names = [
        f"{row // IMAGES_PER_FOLDER:05d}/img{row:08d}{suffix}"
        for row, suffix in enumerate(common_suffixes(subset, images))
    ]
    layout = Layout(
        "edm",
        [f"{IMAGES_FOLDER}/{name}" for name in names],
        texts={
            f"{IMAGES_FOLDER}/{LABELS_NAME}": _labels_json(subset, names),
            LABELS_NAME: _labels_json(subset, [f"{IMAGES_FOLDER}/{name}" for name in names]),
        },
    )
    return write_folder(
        subset,
        images,
        out,
        layout,
        placement=placement,
        wait_seconds=wait_seconds,
        show=show,
    )


def _labels_json(subset: Subset, names: list[str]) -> str:
    labels = [[name, int(label)] for name, label in zip(names, subset.labels, strict=True)]
    return json.dumps({"labels": labels}) + "\n"
