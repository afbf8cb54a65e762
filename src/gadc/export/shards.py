"""Exports that are a few large files with many images each; finished ones are not written again."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gadc.errors import InputError
from gadc.export.folder import (
    FolderExport,
    Layout,
    claim_folder,
    plan_of,
    write_if_different,
)
from gadc.images.selected import SelectedImages
from gadc.runtime import ProgressStyle, progress
from gadc.storage import (
    digest,
    exclusive,
    file_sha256,
    prepare_output,
    write_atomically,
    write_json,
)
from gadc.subset import Subset

DONE_NAME = ".gadc-shards.json"
IMAGES_PER_SHARD = 1_000
NOT_IN_SHARDS = frozenset(["index", "source"])
"""Columns of the subset that an export doesn't hold: where images were found may change."""

Contents = Iterator[tuple[int, bytes]]
WriteShard = Callable[[Path, Contents], None]
"""Fills a file with rows of the subset and the bytes of their images, in the order given."""


@dataclass(frozen=True)
class Shard:
    """A finished file.

    Attributes:
        name: Relative POSIX path.
        n_images: Images in it.
        n_verified: Those that were compared with their digest.
        n_bytes: Its length.
        sha256: Of its bytes.
    """

    name: str
    n_images: int
    n_verified: int
    n_bytes: int
    sha256: str


def split_rows(rows: Sequence[int], images_per_shard: int) -> list[list[int]]:
    """Divide rows among shards, in order; all but the last have `images_per_shard`.

    Raises:
        InputError: `shard_range`: below 1.
    """
    if images_per_shard < 1:
        raise InputError("shard_range", f"images per shard={images_per_shard} must be at least 1")
    starts = range(0, len(rows), images_per_shard)
    return [list(rows[start : start + images_per_shard]) for start in starts]


def write_shards(
    subset: Subset,
    images: SelectedImages,
    out: Path,
    layout: Layout,
    *,
    rows: dict[str, list[int]],
    write: WriteShard,
    texts: Callable[[list[Shard]], dict[str, str]],
    text_names: Sequence[str],
    wait_seconds: float,
    show: ProgressStyle,
) -> FolderExport:
    """Write every shard, and the texts about them last.

    A shard that an interrupted export finished is compared with the digest noted then, and kept.

    Args:
        subset: What to export.
        images: The same in their source.
        out: A new or empty folder, or one that the same export left unfinished.
        layout: The shard of each image.
        rows: The rows of each shard, by its name, in order.
        write: Fills a shard.
        texts: Makes the texts, by relative path, from the finished shards.
        text_names: Which these are.
        wait_seconds: How long to wait for another process that writes to `out`.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: An image is not the one that was selected, or `out` holds something else.
        RunError: The disk is full or the lock is held.
    """
    prepare_output(out, images.index.source)
    with exclusive(out, wait_seconds=wait_seconds):
        plan = plan_of(subset, _with_columns(layout, subset), placement="copy")
        claim_folder(out, plan, {DONE_NAME, *text_names, *rows})
        recorded = _recorded(out)
        done: list[Shard] = []
        n_written = 0
        with progress("export", subset.n_images, style=show) as bar:
            for name, of_shard in rows.items():
                shard = recorded.get(name)
                if shard is None or not _is_whole(out, shard):
                    shard = _write_shard(images, out, name, of_shard, write)
                    n_written += shard.n_images
                done.append(shard)
                write_json(out / DONE_NAME, [asdict(each) for each in done])
                bar.advance(len(of_shard))
        for name, text in texts(done).items():
            write_if_different(out / name, text.encode())
    n_verified = sum(shard.n_verified for shard in done)
    return FolderExport(out, subset.n_images, n_written, n_verified)


def _with_columns(layout: Layout, subset: Subset) -> Layout:
    """Add what shards say of the images, since those that are there are not written again."""
    columns = {
        name: column for name, column in subset.columns().items() if name not in NOT_IN_SHARDS
    }
    return replace(layout, options={**layout.options, "columns": digest(columns)})


def _write_shard(
    images: SelectedImages, out: Path, name: str, rows: list[int], write: WriteShard
) -> Shard:
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    n_before = images.n_verified

    def contents() -> Contents:
        for row in rows:
            content = images.read(row)
            if content is not None:
                yield row, content
        images.raise_if_changed()

    write_atomically(path, lambda temporary: write(temporary, contents()))
    n_bytes = path.stat().st_size
    return Shard(name, len(rows), images.n_verified - n_before, n_bytes, file_sha256(path))


def _recorded(out: Path) -> dict[str, Shard]:
    """Return the shards that are noted as finished; a broken note is none."""
    try:
        noted: list[dict[str, Any]] = json.loads((out / DONE_NAME).read_bytes())
        return {each["name"]: Shard(**each) for each in noted}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _is_whole(out: Path, shard: Shard) -> bool:
    path = out / shard.name
    return (
        path.is_file()
        and path.stat().st_size == shard.n_bytes
        and file_sha256(path) == shard.sha256
    )
