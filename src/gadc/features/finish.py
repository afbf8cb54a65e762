"""From rows in parts to a finished folder: complete, in the order of the images, all at once.

Everything is first written to a staging folder, its `features.json` last; then the files move to
their places, `features.json` again last. A kill before that leaves the old folder as it was; a kill
while files move is repaired by `roll_forward` in the next run.
"""

import functools
import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gadc.errors import GadcError, RunError
from gadc.features.class_map import HeadMap
from gadc.features.components import principal_components, project
from gadc.features.parts import PARTS_FOLDER, RowCache, clear_parts
from gadc.features.store import (
    EXCLUDED_NAME,
    FEATURES_NAME,
    ITEMS_NAME,
    QUARANTINE_NAME,
    ROWS_NAME,
    SCHEMA_VERSION,
    SUMMARY_NAME,
    read_summary,
    write_table,
)
from gadc.features.tensors import TensorWriter
from gadc.images.source import ImageIndex, Quarantined
from gadc.storage import (
    canonical_json,
    digest,
    file_sha256,
    sync_folder,
    write_atomically,
    write_json,
)

logger = logging.getLogger(__name__)

STAGING_FOLDER = "finished"
ROWS_AT_A_TIME = 4096


@dataclass(frozen=True, eq=False)
class Extraction:
    """All images have been seen; their rows are in the cache.

    Attributes:
        index: The images.
        digests: SHA-256 of each [n, 32].
        bad_positions: Images in quarantine, ascending.
        quarantined: Bad items, those of the scan first.
        cache: Rows and head probabilities.
    """

    index: ImageIndex
    digests: NDArray[np.uint8]
    bad_positions: list[int]
    quarantined: list[Quarantined]
    cache: RowCache

    @functools.cached_property
    def positions(self) -> NDArray[np.int64]:
        """Images with a row, ascending."""
        is_good = np.ones(len(self.index), dtype=np.bool_)
        is_good[self.bad_positions] = False
        return np.flatnonzero(is_good)

    def sha256(self, position: int) -> bytes:
        """Return the digest of an image."""
        return bytes(self.digests[position])

    def blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float32] | None]]:
        """Yield rows and head probabilities in the order of the images."""
        for start in range(0, len(self.positions), ROWS_AT_A_TIME):
            block = self.positions[start : start + ROWS_AT_A_TIME]
            yield self.cache.gather([self.sha256(position) for position in block])

    def input_sha256(self) -> str:
        """Return the digest of everything that was read."""
        sha256 = hashlib.sha256()
        labels = self.index.labels
        for position in self.positions.tolist():
            item = [
                self.index.ids[position],
                self.index.path(position),
                self.sha256(position).hex(),
                None if labels is None else int(labels[position]),
            ]
            sha256.update(canonical_json(item).encode())
        quarantine = [[i.path, i.sha256, i.code, i.message] for i in self.quarantined]
        excluded = [[i.path, i.reason] for i in self.index.excluded]
        rest = [self.index.class_names, quarantine, excluded]
        sha256.update(canonical_json(rest).encode())
        return sha256.hexdigest()


def finish(
    extraction: Extraction,
    out: Path,
    *,
    fingerprint: str,
    described: dict[str, Any],
    head_names: list[str] | None,
    n_components: int | None,
    head_map: HeadMap | None,
) -> None:
    """Write the finished folder, unless the one that is there is the same, and remove the parts.

    Args:
        extraction: All rows.
        out: The output folder, locked.
        fingerprint: Digest of all that rows depend on besides the image.
        described: The same in words.
        head_names: Classes of the encoder's head, if it has one.
        n_components: Project rows on so many principal components; None if they are the features.
        head_map: From the head's classes to the index's, if it is known.

    Raises:
        RunError: The disk is full, or the counts don't add up.
    """
    index = extraction.index
    heads_name = None
    if head_names is not None:
        is_same = head_map is not None and head_map.is_identity
        heads_name = "probabilities" if is_same else "head_probabilities"
    counts = {
        "n_scanned": index.n_scanned,
        "n_images": len(extraction.positions),
        "n_quarantined": len(extraction.quarantined),
        "n_excluded": len(index.excluded),
    }
    if sum(counts.values()) != 2 * index.n_scanned:
        raise RunError("not_reconciled", f"images, quarantined and excluded don't add up: {counts}")
    summary: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "fingerprint": fingerprint,
        "class_names": index.class_names,
        **counts,
        "heads_name": heads_name,
        "provenance": {
            **described,
            "fingerprint": fingerprint,
            "source": str(index.source),
            "kind": index.kind,
            "input_sha256": extraction.input_sha256(),
            "head_class_names": head_names,
            "class_columns": None if head_map is None else head_map.columns,
        },
    }
    if not _is_current(out, summary):
        staging = out / PARTS_FOLDER / STAGING_FOLDER
        if staging.exists():
            shutil.rmtree(staging)  # of a killed run, perhaps with another encoder
        staging.mkdir(parents=True)
        _write_tensors(staging, extraction, n_components, heads_name, head_map)
        _write_tables(staging, extraction)
        files = sorted(path for path in staging.iterdir() if path.name != SUMMARY_NAME)
        summary["files"] = {path.name: file_sha256(path) for path in files}
        write_json(staging / SUMMARY_NAME, {**summary, "digest": digest(summary)})
        roll_forward(out)
    clear_parts(out)


def roll_forward(out: Path) -> None:
    """Move a complete staging folder to its place; do nothing if there is none."""
    staging = out / PARTS_FOLDER / STAGING_FOLDER
    if not (staging / SUMMARY_NAME).is_file():
        return
    try:
        files = read_summary(staging)["files"]
    except GadcError as error:
        logger.warning("%s; the folder is put together again", error)
        shutil.rmtree(staging)
        return
    (out / SUMMARY_NAME).unlink(missing_ok=True)
    if ROWS_NAME not in files:
        (out / ROWS_NAME).unlink(missing_ok=True)
    for path in sorted(staging.iterdir()):
        if path.name != SUMMARY_NAME:
            os.replace(path, out / path.name)
    sync_folder(out)
    os.replace(staging / SUMMARY_NAME, out / SUMMARY_NAME)
    sync_folder(out)
    staging.rmdir()


def _is_current(out: Path, summary: dict[str, Any]) -> bool:
    """Tell whether the finished folder is what would be written; its digests were checked."""
    try:
        found = read_summary(out)
    except GadcError:
        return False
    files = found.pop("files")
    return canonical_json(found) == canonical_json(summary) and all(
        (out / name).is_file() for name in files
    )


def _write_tensors(
    staging: Path,
    extraction: Extraction,
    n_components: int | None,
    heads_name: str | None,
    head_map: HeadMap | None,
) -> None:
    """Write `features.safetensors`, and `rows.safetensors` if the rows are not the features."""
    index, n_images = extraction.index, len(extraction.positions)
    first_rows, first_heads = extraction.cache.gather(
        [extraction.sha256(position) for position in extraction.positions[:1]]
    )
    n_columns = first_rows.shape[1]
    as_features: Callable[[NDArray[Any]], NDArray[np.float32]] = np.asarray
    if n_components is not None:
        rows_type = first_rows.dtype
        _check_space(staging, n_images * n_columns * rows_type.itemsize)

        def write_rows(path: Path) -> None:
            with TensorWriter(path, {"rows": ((n_images, n_columns), rows_type)}, {}) as file:
                file.extend("rows", (rows for rows, _ in extraction.blocks()))

        write_atomically(staging / ROWS_NAME, write_rows)
        mean, directions = principal_components(
            lambda: (rows for rows, _ in extraction.blocks()), n_components=n_components
        )
        as_features = functools.partial(project, mean=mean, directions=directions)
        n_columns = directions.shape[1]

    shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    if index.labels is not None:
        shapes["labels"] = (n_images,), np.dtype("<i8")
    shapes["features"] = (n_images, n_columns), np.dtype("<f4")
    if head_map is not None:
        shapes["probabilities"] = (n_images, len(head_map.columns)), np.dtype("<f4")
    if heads_name == "head_probabilities" and first_heads is not None:
        shapes["head_probabilities"] = (n_images, first_heads.shape[1]), np.dtype("<f4")
    _check_space(staging, sum(math.prod(shape) * 8 for shape, _ in shapes.values()))

    def write_features(path: Path) -> None:
        names = {"class_names": canonical_json(index.class_names)}
        with TensorWriter(path, shapes, names) as file:
            if index.labels is not None:
                file.append("labels", index.labels[extraction.positions])
            for rows, heads in extraction.blocks():
                file.append("features", as_features(rows))
                if heads is not None and head_map is not None:
                    file.append("probabilities", head_map(heads))
                if heads is not None and "head_probabilities" in shapes:
                    file.append("head_probabilities", heads)

    write_atomically(staging / FEATURES_NAME, write_features)


def _check_space(folder: Path, n_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < n_bytes:
        raise RunError(
            "disk_full",
            f"{folder} needs {n_bytes} bytes and its disk has {free_bytes}; free some and run the "
            "same command again",
        )


def _write_tables(staging: Path, extraction: Extraction) -> None:
    """Write the items, the quarantine and the excluded files."""
    index = extraction.index
    positions = extraction.positions.tolist()
    labels = None if index.labels is None else index.labels[extraction.positions].tolist()
    digests = [extraction.sha256(position) for position in positions]
    empty = [None] * len(positions)
    items: dict[str, list[Any]] = {
        "id": [index.ids[position] for position in positions],
        "path": [index.path(position) for position in positions],
        "sha256": [sha256.hex() for sha256 in digests],
        "label": labels or empty,
        "class_name": [index.class_names[label] for label in labels] if labels else empty,
        "flags": [extraction.cache.flags(sha256) for sha256 in digests],
    }
    quarantine: dict[str, list[Any]] = {
        "path": [item.path for item in extraction.quarantined],
        "sha256": [item.sha256 for item in extraction.quarantined],
        "code": [item.code for item in extraction.quarantined],
        "message": [item.message for item in extraction.quarantined],
    }
    excluded: dict[str, list[Any]] = {
        "path": [item.path for item in index.excluded],
        "reason": [item.reason for item in index.excluded],
    }
    tables = {ITEMS_NAME: items, QUARANTINE_NAME: quarantine, EXCLUDED_NAME: excluded}
    for name, columns in tables.items():
        types = {column: "int64" if column == "label" else "string" for column in columns}
        write_atomically(
            staging / name, functools.partial(write_table, columns=columns, types=types)
        )
