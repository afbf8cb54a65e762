"""What each step is trained on: a function of the seed and the step alone."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gadc.runtime import generator

N_AHEAD = 3
"""Steps whose noise is drawn while the device computes."""


@dataclass(frozen=True)
class StreamSettings:
    """What the stream depends on beside the step.

    Attributes:
        seed: The user's.
        n_images: Number of training images.
        batch_size: Images of a step.
        shape: Of one image's noise, such as (4, 32, 32).
        flip: Whether half of the images are mirrored.
        drop_probability: How often class and text are dropped, both at once.
        has_posterior: Whether latents are drawn from the VAE's posterior, which takes noise too.
    """

    seed: int
    n_images: int
    batch_size: int
    shape: tuple[int, ...]
    flip: bool
    drop_probability: float
    has_posterior: bool


@dataclass(frozen=True)
class Batch:
    """One step's draws, in the order of its images.

    Attributes:
        rows: Which images, int64 [b].
        flips: Which are mirrored, bool [b].
        uniform: From [0, 1), float64 [b]: when each is noised.
        drops: Which are trained without class and text, bool [b].
        noise: Float32 [b, *shape].
        posterior: Float32 [b, *shape], for the latents; None without a posterior.
    """

    rows: NDArray[np.int64]
    flips: NDArray[np.bool_]
    uniform: NDArray[np.float64]
    drops: NDArray[np.bool_]
    noise: NDArray[np.float32]
    posterior: NDArray[np.float32] | None


def draw_batch(settings: StreamSettings, step: int) -> Batch:
    """Draw what step number `step` consists of.

    Images come in passes over all of them, each in an order of its own; a batch may hold the end
    of one pass and the beginning of the next. Nothing depends on earlier steps, on devices or on
    how a batch is divided among them, so a run that goes on sees what it would have seen.

    Args:
        settings: See there.
        step: From 0.
    """
    b, seed = settings.batch_size, settings.seed
    places = np.arange(step * b, (step + 1) * b)
    passes, within = np.divmod(places, settings.n_images)
    rows = np.empty(b, np.int64)
    for number in np.unique(passes).tolist():
        order = generator(seed, "pass", number).permutation(settings.n_images)
        of_pass = passes == number
        rows[of_pass] = order[within[of_pass]]
    flips = generator(seed, "flip", step).random(b) < 0.5
    uniform = generator(seed, "time", step).random(b)
    drops = generator(seed, "drop", step).random(b) < settings.drop_probability
    size = (b, *settings.shape)
    noise = generator(seed, "noise", step).standard_normal(size, dtype=np.float32)
    posterior = None
    if settings.has_posterior:
        posterior = generator(seed, "posterior", step).standard_normal(size, dtype=np.float32)
    return Batch(rows, flips & settings.flip, uniform, drops, noise, posterior)


def batches(settings: StreamSettings, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
    """Yield steps and their batches, drawn ahead by a thread of its own."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="gadc-stream") as executor:
        pending: list[Future[Batch]] = []
        try:
            for step in range(start, stop):
                while len(pending) < N_AHEAD and step + len(pending) < stop:
                    pending.append(executor.submit(draw_batch, settings, step + len(pending)))
                yield step, pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()
