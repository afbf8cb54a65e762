"""What a method selects from: the images of one class."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.objective.total import checked_losses

N_EXAMPLES = 10
"""How many bad rows an error names."""


@dataclass(frozen=True, eq=False)
class Pool:
    """One class of the data.

    Attributes:
        features: [n, d], float32.
        confidence_loss: `-log p(c | x)` [n]; None if there are no class probabilities.
        difficulty: How hard each image is, higher for harder [n]; None if nothing says so.
        difficulty_source: Where `difficulty` comes from, such as `negative margin`.

    Raises:
        InputError: `features_shape`, `features_not_finite`, `confidence_shape` or
            `difficulty_shape`.
    """

    features: NDArray[np.float32]
    confidence_loss: NDArray[np.float64] | None = None
    difficulty: NDArray[np.float64] | None = None
    difficulty_source: str = ""

    def __post_init__(self) -> None:
        """Refuse what no method could use."""
        features = self.features
        if features.ndim != 2 or 0 in features.shape:
            raise InputError(
                "features_shape",
                f"features must be [n, d] with n, d >= 1; got {list(features.shape)}",
            )
        bad_rows = np.flatnonzero(~np.isfinite(features).all(1))[:N_EXAMPLES].tolist()
        if bad_rows:
            raise InputError(
                "features_not_finite",
                f"features hold NaN or infinity in rows {bad_rows} (first ten shown); "
                "remove these images or extract their features again",
            )
        if self.confidence_loss is not None:
            checked_losses(self.confidence_loss, self.n_images)
        if self.difficulty is not None:
            check_difficulty(self.difficulty, self.n_images)

    @property
    def n_images(self) -> int:
        """Number of images to choose from."""
        return len(self.features)

    def needed_difficulty(self, method: str) -> NDArray[np.float64]:
        """Return the difficulty of each image, float64 [n].

        Args:
            method: Who needs it, for the error.

        Raises:
            InputError: `difficulty_missing`.
        """
        if self.difficulty is None:
            raise InputError(
                "difficulty_missing",
                f"{method} needs a difficulty of each image; give one number each (higher = "
                "harder), such as a model's loss or 1 - AUM, or class probabilities, whose "
                "negative margin is one",
            )
        return np.asarray(self.difficulty, dtype=np.float64)

    def needed_confidence(self, method: str) -> NDArray[np.float64]:
        """Return `-log p(c | x)` of each image, float64 [n].

        Args:
            method: Who needs it, for the error.

        Raises:
            InputError: `confidence_missing`.
        """
        if self.confidence_loss is None:
            raise InputError(
                "confidence_missing",
                f"{method} needs confidence losses; give class probabilities",
            )
        return np.asarray(self.confidence_loss, dtype=np.float64)


def check_difficulty(difficulty: NDArray[np.float64], n_images: int) -> None:
    """Refuse anything but one finite number for each image.

    Raises:
        InputError: `difficulty_shape`.
    """
    if difficulty.shape != (n_images,) or not np.isfinite(difficulty).all():
        raise InputError(
            "difficulty_shape",
            f"difficulty must be {n_images} finite numbers, one per image; got shape "
            f"{list(difficulty.shape)}",
        )


def check_n_selected(pool: Pool, n_selected: int) -> None:
    """Refuse more images than there are, or none.

    Raises:
        InputError: `n_selected_range`.
    """
    if not 1 <= n_selected <= pool.n_images:
        raise InputError(
            "n_selected_range",
            f"n_selected={n_selected} must lie between 1 and {pool.n_images}, the images of the "
            "class",
        )
