"""A Hugging Face dataset: parquet files with images and typed columns, and a dataset card."""

from pathlib import Path

import pyarrow.parquet

from gadc.export.captions import check_captions
from gadc.export.dataset_card import CARD_NAME, dataset_card
from gadc.export.folder import FolderExport, Layout, selected_images
from gadc.export.shards import IMAGES_PER_SHARD, Contents, split_rows, write_shards
from gadc.hub import ROWS_PER_BATCH, hub_batch, hub_schema
from gadc.images.source import ImageIndex
from gadc.runtime import ProgressStyle
from gadc.storage import digest
from gadc.subset import Subset


def export_huggingface(
    subset: Subset,
    index: ImageIndex,
    out: Path,
    *,
    captions: list[str] | None = None,
    license_id: str | None = None,
    images_per_shard: int = IMAGES_PER_SHARD,
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> FolderExport:
    """Write `out/data/train-00000-of-00001.parquet` and so on, and `out/README.md` last.

    `datasets.load_dataset(out)` reads it, and so does the Hub when the folder is uploaded. The
    columns: `image`; `label` with the names of the classes; `id`, `sha256`, `rank`, `gain` and
    `weight` as in `subset.parquet`; and `text` with captions. Rows stand as in the subset.
    Writing needs no more than the core; names that are not valid Unicode are escaped.

    Args:
        subset: What to export.
        index: The images it was selected from.
        out: A new or empty folder, or one that the same export left unfinished.
        captions: One per image; default: none.
        license_id: The licence of the images, as the Hub abbreviates it; default: the card says
            that none was given.
        images_per_shard: At least 1.
        wait_seconds: How long to wait for another process that writes to `out`.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: An image is missing in the source or not the one that was selected, or `out`
            holds something else; `export_cannot_hold`: a caption is not valid Unicode.
    """
    if captions is not None:
        check_captions(captions, subset, form="hf")
    card = dataset_card(subset, has_captions=captions is not None, license_id=license_id)
    parts = split_rows(range(subset.n_images), images_per_shard)
    shards = {
        f"data/train-{number:05d}-of-{len(parts):05d}.parquet": rows
        for number, rows in enumerate(parts)
    }
    schema = hub_schema(subset.class_names, has_captions=captions is not None)
    columns = subset.columns()

    def write(path: Path, contents: Contents) -> None:
        with pyarrow.parquet.ParquetWriter(
            path, schema, compression="zstd", write_page_checksum=True
        ) as writer:
            while group := [item for item, _ in zip(contents, range(ROWS_PER_BATCH), strict=False)]:
                rows, images = [row for row, _ in group], [content for _, content in group]
                writer.write_batch(hub_batch(columns, rows, images, schema, captions=captions))

    layout = Layout(
        "hf",
        [name for name, rows in shards.items() for _ in rows],
        options={
            "images_per_shard": images_per_shard,
            "captions": digest(captions),
            "card": digest(card),
        },
    )
    return write_shards(
        subset,
        selected_images(subset, index),
        out,
        layout,
        rows=shards,
        write=write,
        texts=lambda _done: {CARD_NAME: card},
        text_names=[CARD_NAME],
        wait_seconds=wait_seconds,
        show=show,
    )
