"""One decode and one forward pass per image, whatever happens meanwhile."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self, get_args

from gadc.cluster.connection import Engine, check_engine, joined
from gadc.errors import InputError, RunError
from gadc.features.class_map import ClassMap, match_classes
from gadc.features.computing import Reading, RowBlock, RowComputer, Seen, fingerprint_of
from gadc.features.encoders import Encoder
from gadc.features.finish import Extraction, finish, roll_forward
from gadc.features.on_cluster import SharedWork, compute_on
from gadc.features.parts import RowCache, open_cache, write_part
from gadc.features.store import FeatureSet, load_features
from gadc.features.tally import FEW_BAD, OnError, Tally
from gadc.images.decode import DecodePolicy
from gadc.images.source import ImageIndex
from gadc.runtime import ProgressStyle, progress
from gadc.storage import exclusive, is_disk_full, prepare_output

__all__ = ["FEW_BAD", "OnError", "extract"]

logger = logging.getLogger(__name__)

PART_ROWS = 4096
PART_SECONDS = 30.0
"""A part is written at the latest after this time: so much work a kill can cost."""


def extract(
    index: ImageIndex,
    encoder: Encoder,
    out: Path,
    *,
    batch_size: int = 64,
    max_bad: float = 0.01,
    on_error: OnError = "quarantine",
    decode_workers: int = 2,
    policy: DecodePolicy | None = None,
    class_map: ClassMap | None = None,
    engine: Engine = "local",
    address: str | None = None,
    workers: int | None = None,
    weights: Path | None = None,
    show: ProgressStyle = "silent",
) -> FeatureSet:
    """Compute the features of all images of an index, and write them to a folder.

    Work done is never done again: a killed run continues when the same call is made, and ends with
    the same bytes as an undisturbed one. A later call on changed data reads all images to compare
    their SHA-256 (names, sizes and times prove nothing), but computes only new contents, once each.
    If the folder holds the features of another encoder, preprocessing or version, all are computed
    anew, and replace those only when they are complete.

    The result depends neither on `decode_workers` nor on the engine. On a GPU another `batch_size`
    changes the last digits; on a CPU forward passes have one size, and as many run at once as torch
    has threads.

    Args:
        index: The images.
        encoder: From `load_encoder`.
        out: The folder to fill; outside the source.
        batch_size: Images per forward pass on a GPU, halved when its memory runs out.
        max_bad: Largest fraction of bad images; a single class may have 5 % of them, or `max_bad`
            if that is more. Twenty bad images never stop a run.
        on_error: What a bad image does: goes into quarantine, or stops the run.
        decode_workers: Threads that read and decode.
        policy: What is accepted as an image; None for the defaults.
        class_map: For each class of the index the class or classes of the encoder's head, for
            `probabilities`. None matches equal names.
        engine: `local` for this process; `ray` for the machines of a cluster, which must have the
            images under the same absolute path.
        address: Of the cluster; see `gadc.cluster.connection.joined`.
        workers: With Ray, the most tasks at the same time; default: what fits the cluster.
        weights: With Ray, what `load_encoder` was given: each machine loads the encoder itself.
        show: See `gadc.runtime.progress`.

    Returns:
        The features, memory-mapped.

    Raises:
        InputError: `too_many_bad`, `bad_image` (with `on_error="fail"`), `no_images`, arguments out
            of range, a class map that doesn't fit, a folder that can't be used, or a cluster that
            can't be joined.
        RunError: `locked`, `disk_full`, `out_of_memory`, `not_shared`: a machine can't read an
            image, `worker_died`, or `features_not_finite`: the encoder gives NaN.
    """
    if batch_size < 1 or decode_workers < 1:
        raise InputError(
            "bad_argument",
            f"batch_size {batch_size} and decode_workers {decode_workers} must be at least 1",
        )
    if not 0 <= max_bad <= 1:
        raise InputError("bad_argument", f"max_bad is {max_bad}; it must lie between 0 and 1")
    if on_error not in get_args(OnError):
        raise InputError("bad_argument", f"on_error={on_error!r} is not one of {get_args(OnError)}")
    check_engine(engine, address=address, workers=workers, device=str(encoder.device))
    reading = Reading(policy or DecodePolicy(), batch_size, decode_workers)
    head_map = match_classes(encoder.class_names, index.class_names, class_map)
    fingerprint, described = fingerprint_of(encoder, reading.policy)
    with joined(engine, address, workers) as cluster:
        prepare_output(out, index.source)
        with _named_disk_errors(out), exclusive(out):
            roll_forward(out)
            cache, n_corrupt = open_cache(out, fingerprint)
            parts = _PartBuffer(out, fingerprint, cache)
            tally = Tally(index, max_bad, on_error)
            with progress("features", len(index), style=show) as bar, parts:

                def see(seen: Seen) -> None:
                    bar.advance()
                    tally.add(seen)

                if cluster is None:
                    computer = RowComputer(index, encoder, reading, parts)
                    computer.compute(range(len(index)), see)
                else:
                    work = SharedWork(
                        index, encoder.name, weights, reading, described, frozenset(cache)
                    )
                    compute_on(cluster, work, parts, see)
            if len(tally.bad_positions) == len(index):
                raise InputError("no_images", f"{index.source} has no image that can be used")
            finish(
                Extraction(index, tally.digests, tally.bad_positions, tally.quarantined, cache),
                out,
                fingerprint=fingerprint,
                described=described,
                head_names=encoder.class_names,
                n_components=encoder.n_components,
                head_map=head_map,
            )
            found = load_features(out, verify=False)
    counts = {
        "computed": parts.n_added,
        "reused": found.n_images - parts.n_added,
        "corrupt": n_corrupt,
    }
    logger.info("%s: %d images, %s", out, found.n_images, counts)
    return dataclasses.replace(found, run_counts=counts)


@contextlib.contextmanager
def _named_disk_errors(out: Path) -> Iterator[None]:
    """Turn what the disk may refuse outside `write_atomically` into an error with a remedy."""
    try:
        yield
    except OSError as error:
        is_full = is_disk_full(error)
        raise RunError(
            "disk_full" if is_full else "disk_error",
            f"{out}: {error}; {'free some space' if is_full else 'repair the disk'} and run the "
            "same command again, it continues",
        ) from error


class _PartBuffer:
    """Rows on their way to the next part; those at hand are written in the end, whatever it is.

    Attributes:
        n_added: Rows taken in.
    """

    def __init__(self, out: Path, fingerprint: str, cache: RowCache) -> None:
        self._out, self._fingerprint, self._cache = out, fingerprint, cache
        self.n_added = 0
        self._clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.flush()

    def __contains__(self, digest: object) -> bool:
        return digest in self._cache or digest in self._digests

    def _clear(self) -> None:
        self._blocks: list[RowBlock] = []
        self._digests: set[bytes] = set()
        self._started = time.monotonic()

    def add(self, block: RowBlock) -> None:
        """Take in rows; write a part when it is large or old enough."""
        self.n_added += len(block.digests)
        self._blocks.append(block)
        self._digests.update(block.digests)
        is_old = time.monotonic() - self._started > PART_SECONDS
        if len(self._digests) >= PART_ROWS or is_old:
            self.flush()

    def flush(self) -> None:
        """Write what there is to a part, and hand it over to the cache."""
        if not self._blocks:
            return
        part = RowBlock.joined(self._blocks)
        flags = {row: text for row, text in enumerate(part.flags) if text}
        path = write_part(self._out, self._fingerprint, part.digests, part.rows, part.heads, flags)
        heads_name = None if part.heads is None else "heads"
        self._cache.add(path, "rows", heads_name, part.digests, flags)
        self._clear()
