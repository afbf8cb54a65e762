"""The layout of FiftyOne's `FiftyOneImageClassificationDataset`: `data/` and `labels.json`."""

import json
from pathlib import Path

from gadc.export.folder import (
    FolderExport,
    Layout,
    Placement,
    check_placement,
    image_record,
    selected_images,
    write_folder,
)
from gadc.export.naming import common_suffixes, unique_stems
from gadc.images.source import ImageIndex
from gadc.runtime import ProgressStyle
from gadc.storage import escape_name
from gadc.subset import Subset

DATA_FOLDER = "data"
LABELS_NAME = "labels.json"
SAMPLES_NAME = "samples.json"


def export_fiftyone(
    subset: Subset,
    index: ImageIndex,
    out: Path,
    *,
    placement: Placement = "copy",
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> FolderExport:
    """Write `out/data/<class>-<name>.png` and `out/labels.json`, classes by the names of files.

    `samples.json` beside them has an object per image with what that format has no place for:
    rank, gain, weight and the image's id in the source.

    Args:
        subset: What to export.
        index: The images it was selected from.
        out: A new or empty folder, or one that the same export left unfinished.
        placement: See `export_imagefolder`.
        wait_seconds: How long to wait for another process that writes to `out`.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: As `export_imagefolder`.

    Source: the FiftyOne user guide, "FiftyOneImageClassificationDataset".
    """
    check_placement(placement, index)
    images = selected_images(subset, index)
    stems = unique_stems(subset, [DATA_FOLDER] * subset.n_images, with_class=True)
    suffixes = common_suffixes(subset, images)
    names = [stem + suffix for stem, suffix in zip(stems, suffixes, strict=True)]
    layout = Layout(
        "fiftyone",
        names,
        texts={
            LABELS_NAME: _labels_json(subset, stems),
            SAMPLES_NAME: _samples_json(subset, names),
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


def _labels_json(subset: Subset, stems: list[str]) -> str:
    labels = {
        stem.removeprefix(f"{DATA_FOLDER}/"): int(label)
        for stem, label in zip(stems, subset.labels, strict=True)
    }
    classes = [escape_name(name) for name in subset.class_names]
    return json.dumps({"classes": classes, "labels": labels}, indent=0) + "\n"


def _samples_json(subset: Subset, names: list[str]) -> str:
    samples = [{"filepath": name, **image_record(subset, row)} for row, name in enumerate(names)]
    return json.dumps({"samples": samples}, indent=0) + "\n"
