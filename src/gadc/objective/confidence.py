"""How typical of its class a classifier finds an image: `-log p(c | x)`."""

import numpy as np

# Probabilities below this count as this: a loss of at most 27.6 instead of infinity.
SMALLEST_PROBABILITY = 1e-12


def confidence_losses(probabilities: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return `-log p(c | x)`, float64 [n].

    Args:
        probabilities: [n, c], rows summing to 1.
        columns: Each image's own class, as a column of `probabilities`, int64 [n].
    """
    own = probabilities[np.arange(len(columns)), columns].astype(np.float64)
    return np.asarray(-np.log(np.clip(own, SMALLEST_PROBABILITY, 1.0)))
