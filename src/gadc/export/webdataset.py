"""WebDataset: tar shards that are read as streams, and an index of them."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gadc.export.captions import check_captions
from gadc.export.folder import FolderExport, Layout, image_record, selected_images
from gadc.export.shards import IMAGES_PER_SHARD, Contents, Shard, split_rows, write_shards
from gadc.images.source import ImageIndex, suffix
from gadc.images.structure import identify
from gadc.runtime import ProgressStyle
from gadc.storage import canonical_json, digest
from gadc.subset import Subset

INDEX_NAME = "index.json"
INDEX_SCHEMA = 1
SUFFIXES = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "TIFF": "tiff",
    "GIF": "gif",
}


def export_webdataset(
    subset: Subset,
    index: ImageIndex,
    out: Path,
    *,
    captions: list[str] | None = None,
    images_per_shard: int = IMAGES_PER_SHARD,
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> FolderExport:
    """Write `out/shard-000000.tar` and so on, and `out/index.json` when all are there.

    Each image is a sample `000000123.cls`, `.jpg`, `.json` and, with captions, `.txt`; `.json` has
    its id, rank, gain and weight. Samples go by rank and then by class, so that every shard mixes
    the classes, and the first shards alone are a smaller subset. Equal subsets give equal bytes.

    Args:
        subset: What to export.
        index: The images it was selected from.
        out: A new or empty folder, or one that the same export left unfinished.
        captions: One per image; default: none.
        images_per_shard: At least 1.
        wait_seconds: How long to wait for another process that writes to `out`.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: An image is missing in the source or not the one that was selected, or `out`
            holds something else; `export_cannot_hold`: a caption is not valid Unicode.
    """
    if captions is not None:
        check_captions(captions, subset, form="wds")
    by_rank = np.lexsort((subset.labels, subset.rank)).tolist()
    shards = {
        f"shard-{number:06d}.tar": rows
        for number, rows in enumerate(split_rows(by_rank, images_per_shard))
    }
    shard_of = {row: name for name, rows in shards.items() for row in rows}
    key_of = {row: f"{number:09d}" for number, row in enumerate(by_rank)}

    def write(path: Path, contents: Contents) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for row, content in contents:
                caption = None if captions is None else captions[row]
                for ending, member in _members(subset, row, content, caption):
                    _add(archive, f"{key_of[row]}.{ending}", member)

    layout = Layout(
        "wds",
        [shard_of[row] for row in range(subset.n_images)],
        options={"images_per_shard": images_per_shard, "captions": digest(captions)},
    )
    return write_shards(
        subset,
        selected_images(subset, index),
        out,
        layout,
        rows=shards,
        write=write,
        texts=lambda done: {INDEX_NAME: _index_json(done)},
        text_names=[INDEX_NAME],
        wait_seconds=wait_seconds,
        show=show,
    )


def _members(
    subset: Subset, row: int, content: bytes, caption: str | None
) -> Iterator[tuple[str, bytes]]:
    """Yield (suffix, bytes) of a sample, sorted."""
    record = {**image_record(subset, row), "sha256": subset.sha256[row]}
    members = {
        "cls": b"%d" % int(subset.labels[row]),
        "json": canonical_json(record).encode(),
        _image_suffix(subset.paths[row], content): content,
    }
    if caption is not None:
        members["txt"] = caption.encode()
    yield from sorted(members.items())


def _image_suffix(path: str, content: bytes) -> str:
    """Return the suffix by which readers choose a decoder: what the bytes are, if they tell."""
    return SUFFIXES.get(identify(content) or "", suffix(path).removeprefix(".") or "bin")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and rights are constants
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _index_json(shards: list[Shard]) -> str:
    described = {
        "schema": INDEX_SCHEMA,
        "n_images": sum(shard.n_images for shard in shards),
        "shards": [
            {
                "name": shard.name,
                "n_images": shard.n_images,
                "n_bytes": shard.n_bytes,
                "sha256": shard.sha256,
            }
            for shard in shards
        ],
    }
    return json.dumps(described, indent=2) + "\n"
