"""Which class each image is of."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.runtime import generator
from gadc.sampling.config import Labelling


def image_labels(
    n_samples: int, classes: NDArray[np.int64], *, labelling: Labelling, seed: int
) -> NDArray[np.int64]:
    """Return a class for each image; that of image i doesn't depend on how many there are.

    Args:
        n_samples: How many images.
        classes: Class numbers to choose from.
        labelling: See `SampleConfig.labels`.
        seed: The user's.
    """
    k = len(classes)
    labels = np.empty(-(-n_samples // k) * k, np.int64)
    for block in range(len(labels) // k):
        source = generator(seed, "labels", block)
        places = source.permutation(k) if labelling == "balanced" else source.integers(k, size=k)
        labels[block * k : (block + 1) * k] = classes[places]
    return labels[:n_samples]


def class_numbers(class_names: Sequence[str], wanted: Sequence[str] | None) -> NDArray[np.int64]:
    """Return the numbers of some classes, or of all.

    Raises:
        InputError: `unknown_classes`.
    """
    if wanted is None:
        return np.arange(len(class_names))
    numbers = {name: number for number, name in enumerate(class_names)}
    if missing := [name for name in wanted if name not in numbers]:
        raise InputError(
            "unknown_classes",
            f"the model knows no classes {', '.join(map(repr, missing[:10]))}; it knows "
            f"{', '.join(map(repr, class_names[:10]))}{' ...' if len(class_names) > 10 else ''}",
        )
    return np.array([numbers[name] for name in wanted], np.int64)
