"""One decode and one forward pass per image, on whichever machine."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Container, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from gadc.errors import RunError
from gadc.features.encoders import Encoder
from gadc.features.forward import BlockForward
from gadc.images.decode import DecodePolicy, decode
from gadc.images.faults import ImageError
from gadc.images.source import ImageIndex
from gadc.storage import digest

Item = TypeVar("Item")


def fingerprint_of(encoder: Encoder, policy: DecodePolicy) -> tuple[str, dict[str, Any]]:
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


@dataclass(frozen=True)
class Seen:
    """What became of one image.

    Attributes:
        position: In the index.
        digest: SHA-256 of its bytes; None where they could not be read.
        error: Why it is bad, if it is.
    """

    position: int
    digest: bytes | None
    error: ImageError | None = None


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Rows of several images.

    Attributes:
        digests: SHA-256 of each image.
        rows: [b, d].
        heads: Head probabilities [b, h], if the encoder has a head.
        flags: What decoding each image had to do, separated by commas.
    """

    digests: list[bytes]
    rows: NDArray[Any]
    heads: NDArray[np.float32] | None
    flags: list[str]

    @classmethod
    def joined(cls, blocks: Sequence["RowBlock"]) -> "RowBlock":
        """Return the rows of blocks, at least one, as one."""
        heads = [block.heads for block in blocks if block.heads is not None]
        return cls(
            [digest for block in blocks for digest in block.digests],
            np.concatenate([block.rows for block in blocks]),
            np.concatenate(heads) if heads else None,
            [flags for block in blocks for flags in block.flags],
        )

    def without(self, known: Container[bytes]) -> "RowBlock":
        """Return the rows of images that are not known."""
        places = [place for place, found in enumerate(self.digests) if found not in known]
        return RowBlock(
            [self.digests[place] for place in places],
            self.rows[places],
            None if self.heads is None else self.heads[places],
            [self.flags[place] for place in places],
        )


@dataclass(frozen=True)
class Reading:
    """How images are read and handed to the encoder.

    Attributes:
        policy: What is accepted as an image.
        batch_size: See `BlockForward`.
        decode_workers: Threads that read and decode.
    """

    policy: DecodePolicy
    batch_size: int
    decode_workers: int


class RowStore(Protocol):
    """Where rows go, by the SHA-256 of their image."""

    def __contains__(self, digest: object) -> bool:
        """Tell whether an image has its row; called from several threads."""

    def add(self, block: RowBlock) -> None:
        """Take in rows of images that have none."""


@dataclass(frozen=True)
class _Prepared:
    """One image as it comes from a decoding thread; `pixels` only if it has to be computed."""

    position: int
    digest: bytes | None
    pixels: NDArray[Any] | None = None
    flags: str = ""
    error: ImageError | None = None


class RowComputer:
    """The loop over images.

    Args:
        index: The images.
        encoder: From `load_encoder`.
        reading: How they are read.
        store: Where rows go, and which are known.
    """

    def __init__(
        self, index: ImageIndex, encoder: Encoder, reading: Reading, store: RowStore
    ) -> None:
        self._index, self._encoder, self._reading = index, encoder, reading
        self._forward = BlockForward(encoder, reading.batch_size)
        self._store = store

    def compute(self, positions: range, see: Callable[[Seen], None]) -> None:
        """Read some images, and compute the rows that the store lacks.

        Args:
            positions: Which.
            see: Called for every image, in order.
        """
        batch: dict[bytes, _Prepared] = {}
        batch_size = self._forward.n_at_once
        n_threads = self._reading.decode_workers
        n_ahead = 2 * batch_size + n_threads
        with self._forward:
            images = _in_order(self._prepare, positions, n_threads, n_ahead)
            try:
                for image in images:
                    see(Seen(image.position, image.digest, image.error))
                    if image.error is not None or image.digest is None:
                        continue
                    if image.digest not in self._store:
                        batch.setdefault(image.digest, image)
                        if len(batch) == batch_size:
                            self._compute(list(batch.values()))
                            batch = {}
                self._compute(list(batch.values()))
            finally:
                images.close()

    def _prepare(self, position: int) -> _Prepared:
        """Read one image, and decode it if its row isn't known; runs in a thread."""
        found: bytes | None = None
        try:
            content = self._index.read(position)
            found = hashlib.sha256(content).digest()
            if found in self._store:
                return _Prepared(position, found)
            decoded = decode(content, self._reading.policy)
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
        digests = [image.digest or b"" for image in batch]
        self._store.add(RowBlock(digests, rows, heads, [image.flags for image in batch]))


def _in_order(
    work: Callable[[int], Item], numbers: range, n_workers: int, n_ahead: int
) -> Generator[Item, None, None]:
    """Yield the work on each number computed in threads, at most `n_ahead` of them waiting."""
    with concurrent.futures.ThreadPoolExecutor(n_workers) as pool:
        waiting: collections.deque[concurrent.futures.Future[Item]] = collections.deque()
        try:
            for number in numbers:
                waiting.append(pool.submit(work, number))
                if len(waiting) > n_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
