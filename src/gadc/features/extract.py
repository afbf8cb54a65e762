"""One decode and one forward pass per image, whatever happens meanwhile."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from gadc.errors import InputError, RunError
from gadc.features.class_map import ClassMap, match_classes
from gadc.features.encoders import Encoder
from gadc.features.finish import Extraction, finish, roll_forward
from gadc.features.forward import BlockForward
from gadc.features.parts import DIGEST_BYTES, RowCache, open_cache, write_part
from gadc.features.store import FeatureSet, load_features
from gadc.images.decode import DecodePolicy, decode
from gadc.images.faults import ImageError
from gadc.images.source import ImageIndex, Quarantined
from gadc.runtime import ProgressStyle, progress
from gadc.storage import digest, exclusive, prepare_output

logger = logging.getLogger(__name__)

OnError = Literal["quarantine", "fail"]
MAX_BAD_IN_CLASS = 0.05
FEW_BAD = 20
"""So many bad images never stop a run: in a small folder they are soon more than a percentage."""
PART_ROWS = 4096
PART_SECONDS = 30.0
"""A part is written at the latest after this time: so much work a kill can cost."""

Item = TypeVar("Item")


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
    show: ProgressStyle = "silent",
) -> FeatureSet:
    """Compute the features of all images of an index, and write them to a folder.

    Work done is never done again: a killed run continues when the same call is made, and ends with
    the same bytes as an undisturbed one. A later call on changed data reads all images to compare
    their SHA-256 (names, sizes and times prove nothing), but computes only new contents, once each.
    If the folder holds the features of another encoder, preprocessing or version, all are computed
    anew, and replace those only when they are complete.

    The result does not depend on `decode_workers`. On a GPU another `batch_size` changes the last
    digits; on a CPU forward passes have one size, and as many run at once as torch has threads.

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
        show: See `gadc.runtime.progress`.

    Returns:
        The features, memory-mapped.

    Raises:
        InputError: `too_many_bad`, `bad_image` (with `on_error="fail"`), `no_images`, arguments out
            of range, a class map that doesn't fit, or a folder that can't be used.
        RunError: `locked`, `disk_full`, `out_of_memory`, or `features_not_finite`: the encoder
            gives NaN.
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
    policy = policy or DecodePolicy()
    head_map = match_classes(encoder.class_names, index.class_names, class_map)
    fingerprint, described = _fingerprint(encoder, policy)
    prepare_output(out, index.source)
    with _named_disk_errors(out), exclusive(out):
        roll_forward(out)
        cache, n_corrupt = open_cache(out, fingerprint)
        bad = _BadItems(index, max_bad, on_error)
        run = _Run(index, encoder, out, fingerprint, cache, policy, batch_size, bad)
        digests = run.compute_missing(decode_workers, show)
        if len(bad.positions) == len(index):
            raise InputError("no_images", f"{index.source} has no image that can be used")
        finish(
            Extraction(index, digests, sorted(bad.positions), bad.quarantined, cache),
            out,
            fingerprint=fingerprint,
            described=described,
            head_names=encoder.class_names,
            n_components=encoder.n_components,
            head_map=head_map,
        )
        found = load_features(out, verify=False)
    counts = {
        "computed": run.n_computed,
        "reused": found.n_images - run.n_computed,
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
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RunError(
            "disk_full" if is_full else "disk_error",
            f"{out}: {error}; {'free some space' if is_full else 'repair the disk'} and run the "
            "same command again, it continues",
        ) from error


def _fingerprint(encoder: Encoder, policy: DecodePolicy) -> tuple[str, dict[str, Any]]:
    """Return the digest of all that a row depends on besides the image, and the same in words."""
    described = {
        "encoder": encoder.fingerprint(),
        "policy": dataclasses.asdict(policy),
        "device": encoder.device.type,
        "versions": {
            "gadc": importlib.metadata.version("gadc"),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "torch": torch.__version__,
        },
    }
    return digest(described), described


class _BadItems:
    """Collects bad images, and stops the run when there are too many."""

    def __init__(self, index: ImageIndex, max_bad: float, on_error: OnError) -> None:
        self.quarantined = list(index.quarantined)
        self.positions: list[int] = []
        self._index, self._max_bad, self._on_error = index, max_bad, on_error
        n_classes = len(index.class_names)
        self._n_bad = np.zeros(n_classes, dtype=np.int64)
        self._n_in_class = (
            np.zeros(n_classes, dtype=np.int64)
            if index.labels is None
            else np.bincount(index.labels, minlength=n_classes)
        )
        for item in self.quarantined:
            self._check(item)

    def add(self, position: int, error: ImageError, sha256: str | None) -> None:
        """Put one image into quarantine."""
        item = Quarantined(self._index.ids[position], error.code, error.message, sha256)
        self.quarantined.append(item)
        self.positions.append(position)
        self._check(item)
        if self._index.labels is not None:
            label = int(self._index.labels[position])
            self._n_bad[label] += 1
            self._check_class(label)

    def _check(self, item: Quarantined) -> None:
        if self._on_error == "fail":
            raise InputError(
                "bad_image", f"{item.path}: {item.code}: {item.message}; remove or repair it"
            )
        n_candidates = len(self._index) + len(self._index.quarantined)
        if len(self.quarantined) > max(FEW_BAD, self._max_bad * n_candidates):
            self._raise(len(self.quarantined), n_candidates, "images", self._max_bad)

    def _check_class(self, label: int) -> None:
        limit = max(MAX_BAD_IN_CLASS, self._max_bad)
        if self._n_bad[label] > max(FEW_BAD, limit * self._n_in_class[label]):
            where = f"images of class {self._index.class_names[label]!r}"
            self._raise(int(self._n_bad[label]), int(self._n_in_class[label]), where, limit)

    def _raise(self, n_bad: int, n_all: int, where: str, limit: float) -> None:
        last = self.quarantined[-1]
        raise InputError(
            "too_many_bad",
            f"at least {n_bad} of {n_all} {where} are bad, more than {limit:.1%}; the last: "
            f"{last.path}: {last.code}: {last.message}. Repair them, or raise max_bad "
            f"(what is computed is kept)",
        )


@dataclass(frozen=True)
class _Prepared:
    """One image as it comes from a decoding thread; `pixels` only if it has to be computed."""

    position: int
    digest: bytes | None
    pixels: NDArray[Any] | None = None
    flags: str = ""
    error: ImageError | None = None


class _Run:
    """The loop over all images."""

    def __init__(
        self,
        index: ImageIndex,
        encoder: Encoder,
        out: Path,
        fingerprint: str,
        cache: RowCache,
        policy: DecodePolicy,
        batch_size: int,
        bad: _BadItems,
    ) -> None:
        self._index, self._encoder, self._policy = index, encoder, policy
        self._cache, self._bad = cache, bad
        self._forward = BlockForward(encoder, batch_size)
        self._part = _PartBuffer(out, fingerprint, cache)
        self.n_computed = 0

    def compute_missing(self, decode_workers: int, show: ProgressStyle) -> NDArray[np.uint8]:
        """Read all images and compute the rows that the cache lacks.

        Returns:
            SHA-256 of each image [n, 32]; zeros where it could not be read.
        """
        digests = np.zeros((len(self._index), DIGEST_BYTES), dtype=np.uint8)
        batch: dict[bytes, _Prepared] = {}
        batch_size = self._forward.n_at_once
        n_ahead = 2 * batch_size + decode_workers
        with self._forward, progress("features", len(self._index), style=show) as bar:
            images = _in_order(self._prepare, len(self._index), decode_workers, n_ahead)
            try:
                for image in images:
                    bar.advance()
                    if image.digest is not None:
                        digests[image.position] = np.frombuffer(image.digest, dtype=np.uint8)
                    if image.error is not None:
                        sha256 = image.digest.hex() if image.digest else None
                        self._bad.add(image.position, image.error, sha256)
                    elif image.digest is not None and not self._is_known(image.digest):
                        batch.setdefault(image.digest, image)
                        if len(batch) == batch_size:
                            self._compute(list(batch.values()))
                            batch = {}
                self._compute(list(batch.values()))
            finally:
                # Also after an error or Ctrl-C: what is computed is kept.
                images.close()
                self._part.flush()
        return digests

    def _is_known(self, digest: bytes) -> bool:
        return digest in self._cache or digest in self._part

    def _prepare(self, position: int) -> _Prepared:
        """Read one image, and decode it if its row isn't known; runs in a thread."""
        found: bytes | None = None
        try:
            content = self._index.read(position)
            found = hashlib.sha256(content).digest()
            if self._is_known(found):
                return _Prepared(position, found)
            decoded = decode(content, self._policy)
        except ImageError as error:
            return _Prepared(position, found, error=error)
        pixels = self._encoder.preprocess(decoded.image)
        return _Prepared(position, found, pixels, ",".join(decoded.flags))

    def _compute(self, batch: list[_Prepared]) -> None:
        if not batch:
            return
        pixels = [image.pixels for image in batch if image.pixels is not None]
        rows, heads = self._forward(np.stack(pixels))
        broken = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
        if broken.size:
            name = self._index.ids[batch[broken[0]].position]
            raise RunError(
                "features_not_finite",
                f"encoder {self._encoder.name} gives NaN or infinity for {name} and "
                f"{broken.size - 1} more of its batch; check the weights",
            )
        self.n_computed += len(batch)
        self._part.add(
            [image.digest or b"" for image in batch], rows, heads, [image.flags for image in batch]
        )


def _in_order(
    work: Callable[[int], Item], n_items: int, n_workers: int, n_ahead: int
) -> Generator[Item, None, None]:
    """Yield `work(0)`, `work(1)`, ... computed in threads, at most `n_ahead` of them waiting."""
    with concurrent.futures.ThreadPoolExecutor(n_workers) as pool:
        waiting: collections.deque[concurrent.futures.Future[Item]] = collections.deque()
        try:
            for number in range(n_items):
                waiting.append(pool.submit(work, number))
                if len(waiting) > n_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _PartBuffer:
    """Rows on their way to the next part."""

    def __init__(self, out: Path, fingerprint: str, cache: RowCache) -> None:
        self._out, self._fingerprint, self._cache = out, fingerprint, cache
        self._clear()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    def _clear(self) -> None:
        self._digests: dict[bytes, str] = {}  # to the flags, in the order of the rows
        self._rows: list[NDArray[Any]] = []
        self._heads: list[NDArray[np.float32]] = []
        self._started = time.monotonic()

    def add(
        self,
        digests: list[bytes],
        rows: NDArray[Any],
        heads: NDArray[np.float32] | None,
        flags: list[str],
    ) -> None:
        """Take in a batch; write a part when it is large or old enough."""
        self._digests.update(zip(digests, flags, strict=True))
        self._rows.append(rows)
        if heads is not None:
            self._heads.append(heads)
        is_old = time.monotonic() - self._started > PART_SECONDS
        if len(self._digests) >= PART_ROWS or is_old:
            self.flush()

    def flush(self) -> None:
        """Write what there is to a part, and hand it over to the cache."""
        if not self._rows:
            return
        rows = np.concatenate(self._rows)
        heads = np.concatenate(self._heads) if self._heads else None
        digests = list(self._digests)
        flags = {row: text for row, text in enumerate(self._digests.values()) if text}
        path = write_part(self._out, self._fingerprint, digests, rows, heads, flags)
        self._cache.add(path, "rows", None if heads is None else "heads", digests, flags)
        self._clear()
