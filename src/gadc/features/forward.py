"""Forward passes whose results don't depend on what else is in the batch."""

import concurrent.futures
import logging
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import RunError
from gadc.features.encoders import Encoder

logger = logging.getLogger(__name__)

CPU_BLOCK_IMAGES = 16
"""On a CPU the matrix kernels, and with them the last bits, depend on the size of the batch but not
on an image's place in it nor on its neighbours. So all forward passes there have this size; larger
ones are not faster."""


class BlockForward:
    """Runs an encoder in blocks of one size, the last one filled up.

    On a CPU several blocks run side by side, each in one thread. Threads inside a layer would wait
    for each other after every layer, and for long when the machine has other work.

    Args:
        encoder: The encoder.
        batch_size: Images per forward pass on a GPU, halved whenever its memory runs out.

    Attributes:
        n_images: Images per forward pass.
        n_at_once: Images that keep the device busy.
    """

    def __init__(self, encoder: Encoder, batch_size: int) -> None:
        self._encoder = encoder
        self._n_threads = torch.get_num_threads()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        if encoder.device.type == "cpu":
            self.n_images = CPU_BLOCK_IMAGES
            self.n_at_once = CPU_BLOCK_IMAGES * self._n_threads
        else:
            self.n_images = self.n_at_once = batch_size

    def __enter__(self) -> Self:
        if self._encoder.device.type == "cpu":
            self._pool = concurrent.futures.ThreadPoolExecutor(
                self._n_threads, initializer=torch.set_num_threads, initargs=(1,)
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._n_threads)

    def __call__(self, inputs: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Return rows [b, d] and head probabilities [b, h] of inputs [b, ...].

        Raises:
            RunError: `out_of_memory`: one image is too much.
        """
        starts = range(0, len(inputs), self.n_images)
        if self._pool is not None:
            blocks = [inputs[start : start + self.n_images] for start in starts]
            results = list(self._pool.map(self._encode, blocks))
        else:
            results = self._encode_while_memory_lasts(inputs)
        rows = np.concatenate([rows for rows, _ in results])
        heads = [heads for _, heads in results if heads is not None]
        return rows, np.concatenate(heads) if heads else None

    def _encode(self, block: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Encode at most `n_images`; copies of the first image fill the block."""
        n_real = len(block)
        filler = np.repeat(block[:1], self.n_images - n_real, axis=0)
        rows, heads = self._encoder.encode(np.concatenate([block, filler]))
        return rows[:n_real], None if heads is None else heads[:n_real]

    def _encode_while_memory_lasts(
        self, inputs: NDArray[Any]
    ) -> list[tuple[NDArray[Any], NDArray[np.float32] | None]]:
        """Encode block after block, with smaller blocks from where memory runs out."""
        results = []
        start = 0
        while start < len(inputs):
            block = inputs[start : start + self.n_images]
            try:
                results.append(self._encode(block))
            except torch.OutOfMemoryError as error:
                self._halve(error)
            else:
                start += len(block)
        return results

    def _halve(self, error: torch.OutOfMemoryError) -> None:
        if self.n_images == 1:
            raise RunError(
                "out_of_memory",
                f"encoder {self._encoder.name} doesn't fit into the GPU's memory with one image; "
                "use device='cpu' or a smaller encoder",
            ) from error
        self.n_images = -(-self.n_images // 2)
        torch.cuda.empty_cache()
        logger.warning("GPU memory ran out; going on with %d images at a time", self.n_images)
