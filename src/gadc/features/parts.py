"""Rows that are already computed, found by the digest of the image's bytes.

A run leaves its rows in parts, files that carry the digest of their own content in their name. A
later run of the same encoder takes what it needs from them, and from the folder that a finished
run left, whichever images have changed, moved or gone meanwhile.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from gadc.errors import GadcError
from gadc.features.store import (
    FEATURES_NAME,
    ITEMS_NAME,
    ROWS_NAME,
    SUMMARY_NAME,
    read_summary,
    read_table,
    verify_files,
)
from gadc.features.tensors import map_tensors
from gadc.storage import file_sha256, write_bytes

logger = logging.getLogger(__name__)

PARTS_FOLDER = "parts"
PART_SUFFIX = ".safetensors"
CORRUPT_SUFFIX = ".corrupt"
FINGERPRINT_CHARACTERS = 16
DIGEST_BYTES = 32
"""Of SHA-256."""


@dataclass(frozen=True)
class _Source:
    """A file of rows; opened only while it is read, because there may be thousands."""

    path: Path
    rows_name: str
    heads_name: str | None
    first: int


class RowCache:
    """Rows by the SHA-256 of the image."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._sources: list[_Source] = []
        self._flags: dict[bytes, str] = {}
        self._n_rows = 0

    def __contains__(self, digest: object) -> bool:
        return digest in self._places

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._places)

    def add(
        self,
        path: Path,
        rows_name: str,
        heads_name: str | None,
        digests: Sequence[bytes],
        flags: Mapping[int, str],
    ) -> None:
        """Take in a file that has been verified.

        Args:
            path: A safetensors file.
            rows_name: Its tensor of rows.
            heads_name: Its tensor of head probabilities, if it has one.
            digests: The image of each row.
            flags: What decoding had to do, by row, where it did anything.
        """
        self._sources.append(_Source(path, rows_name, heads_name, self._n_rows))
        for row, digest in enumerate(digests):
            if self._places.setdefault(digest, self._n_rows + row) == self._n_rows + row:
                self._flags.update({digest: flags[row]} if row in flags else {})
        self._n_rows += len(digests)

    def flags(self, digest: bytes) -> str:
        """Return what decoding the image had to do, separated by commas."""
        return self._flags.get(digest, "")

    def gather(self, digests: Sequence[bytes]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Return rows [b, d] and head probabilities [b, h] of some images, all of them known."""
        places = np.array([self._places[digest] for digest in digests], dtype=np.int64)
        firsts = np.array([source.first for source in self._sources])
        owners = np.searchsorted(firsts, places, side="right") - 1
        rows: NDArray[Any] | None = None
        heads: NDArray[np.float32] | None = None
        for owner in np.unique(owners):
            source, inside = self._sources[owner], owners == owner
            tensors, _ = map_tensors(source.path)
            taken = tensors[source.rows_name].values[places[inside] - source.first]
            if rows is None:
                rows = np.empty((len(digests), *taken.shape[1:]), taken.dtype)
            rows[inside] = taken
            if source.heads_name is not None:
                taken = tensors[source.heads_name].values[places[inside] - source.first]
                if heads is None:
                    heads = np.empty((len(digests), *taken.shape[1:]), np.float32)
                heads[inside] = taken
        if rows is None:
            raise ValueError("no images to gather")
        return rows, heads


def open_cache(out: Path, fingerprint: str) -> tuple[RowCache, int]:
    """Collect the rows that earlier runs of the same encoder left in an output folder.

    What is corrupt is renamed to `*.corrupt` and counts as not computed. What another encoder left
    is not used.

    Args:
        out: The output folder, locked.
        fingerprint: Digest of all that rows depend on besides the image.

    Returns:
        The rows, and the number of corrupt files.
    """
    cache = RowCache()
    n_corrupt = _add_finished(cache, out, fingerprint)
    for path in sorted((out / PARTS_FOLDER).glob(f"*{PART_SUFFIX}")):
        owner, _, content_digest = path.stem.partition("-")
        if owner != fingerprint[:FINGERPRINT_CHARACTERS]:
            continue
        try:
            intact = file_sha256(path) == content_digest
        except OSError as error:
            logger.warning("%s can't be read (%s)", path, error)
            intact = False
        if not intact:
            _set_aside(path)
            n_corrupt += 1
            continue
        tensors, metadata = map_tensors(path)
        joined = bytes.fromhex(metadata["sha256"])
        digests = [joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES)]
        flags = {int(row): text for row, text in json.loads(metadata["flags"]).items()}
        cache.add(path, "rows", "heads" if "heads" in tensors else None, digests, flags)
    return cache, n_corrupt


def write_part(
    out: Path,
    fingerprint: str,
    digests: Sequence[bytes],
    rows: NDArray[Any],
    heads: NDArray[np.float32] | None,
    flags: Mapping[int, str],
) -> Path:
    """Write rows to a part; see `RowCache.add` for the arguments."""
    tensors = {"rows": rows} if heads is None else {"rows": rows, "heads": heads}
    metadata = {"sha256": b"".join(digests).hex(), "flags": json.dumps(flags, sort_keys=True)}
    content = safetensors.numpy.save(tensors, metadata)
    folder = out / PARTS_FOLDER
    folder.mkdir(exist_ok=True)
    # The whole fingerprint would make names too long to read; its start tells encoders apart.
    owner = fingerprint[:FINGERPRINT_CHARACTERS]
    path = folder / f"{owner}-{_sha256(content)}{PART_SUFFIX}"
    write_bytes(path, content)
    return path


def clear_parts(out: Path) -> None:
    """Remove the parts of all encoders; corrupt ones are kept for who wants to know."""
    folder = out / PARTS_FOLDER
    for path in folder.glob(f"*{PART_SUFFIX}"):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _add_finished(cache: RowCache, out: Path, fingerprint: str) -> int:
    """Add the rows of a finished folder; return the number of corrupt files."""
    if not (out / SUMMARY_NAME).exists():
        return 0
    try:
        summary = read_summary(out)
    except GadcError as error:
        logger.warning("%s", error)
        if error.code == "corrupt":
            _set_aside(out / SUMMARY_NAME)
            return 1
        return 0
    if summary["fingerprint"] != fingerprint:
        logger.warning(
            "%s holds features of another encoder, preprocessing or version; all are computed anew",
            out,
        )
        return 0
    bad = verify_files(out, summary)
    for path in bad:
        _set_aside(path)
    rows_file, rows_name = (
        (ROWS_NAME, "rows") if ROWS_NAME in summary["files"] else (FEATURES_NAME, "features")
    )
    if not {path.name for path in bad} & {rows_file, ITEMS_NAME}:
        items = read_table(out / ITEMS_NAME)
        digests = [bytes.fromhex(text) for text in items["sha256"]]
        flags = {row: text for row, text in enumerate(items["flags"]) if text}
        cache.add(out / rows_file, rows_name, summary["heads_name"], digests, flags)
    return len(bad)


def _set_aside(path: Path) -> None:
    """Rename a corrupt file, if it is there at all."""
    logger.warning("%s is corrupt or missing; what it held is computed again", path)
    if path.exists():
        os.replace(path, path.with_name(path.name + CORRUPT_SUFFIX))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
