"""Has the model memorised: are its images nearer to what it was trained on than chance explains?"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.evaluation.distances import nearest, nearest_others
from gadc.evaluation.sample import Features, Sample, as_pair, require_rows

Rule = Literal["ratio", "calibrated"]

NEAR_COPY_RATIO = 1.0 / 3.0
"""Three times nearer to a training image than to any other: Yoon et al., and Gu et al."""
CALIBRATION_QUANTILE = 0.01
"""Share of images that nobody trained on which the calibrated rule takes for copies."""
N_WORST = 20


@dataclass(frozen=True)
class NearCopy:
    """A generated vector beside the real ones nearest to it.

    Attributes:
        generated_row: Which one.
        training_row: Its nearest training vector.
        held_out_row: Its nearest held-out vector.
        training_distance: To the former.
        held_out_distance: To the latter.
        ratio: Of the two distances; the lower, the more it is a copy. 1 where both are 0.
    """

    generated_row: int
    training_row: int
    held_out_row: int
    training_distance: float
    held_out_distance: float
    ratio: float


@dataclass(frozen=True)
class Memorisation:
    """What the generated vectors have in common with the training data.

    Attributes:
        rule: How near-copies are told.
        threshold: Of the ratio; below it, a vector is a near-copy.
        near_copies: Share of generated vectors that are near-copies; lower is better.
        near_copies_by_chance: The same share of the held-out vectors, which nobody trained on.
        closer_to_training: Share of generated vectors that are closer to the training data than to
            the held-out data.
        closer_by_chance: The same share of the held-out vectors.
        ratios: Distance to the training data over distance to the held-out data, per generated
            vector [n].
        worst: The lowest ratios, worst first.
    """

    rule: Rule
    threshold: float
    near_copies: float
    near_copies_by_chance: float
    closer_to_training: float
    closer_by_chance: float
    ratios: NDArray[np.float64]
    worst: list[NearCopy]


def memorisation(
    *,
    generated: Features,
    training: Features,
    held_out: Features,
    rule: Rule = "ratio",
    ratio: float = NEAR_COPY_RATIO,
    quantile: float = CALIBRATION_QUANTILE,
    n_worst: int = N_WORST,
) -> Memorisation:
    """Compare each generated vector's nearest training vector with its nearest held-out one.

    The nearest of many is nearer than the nearest of few, so with training and held-out sets of
    different sizes the shares are not 1/2 and 0 by chance. What chance gives is therefore measured:
    the held-out vectors, each judged by the training set and the other held-out ones.

    Args:
        generated: [n, d].
        training: What the model was trained on [m, d].
        held_out: Of the same distribution, but never trained on [h, d], h >= 2.
        rule: `ratio`: a near-copy has a ratio of the two distances below `ratio`. `calibrated`:
            below the `quantile` of the held-out vectors' own ratios.
        ratio: Of the rule `ratio`; above 0.
        quantile: Of the rule `calibrated`; between 0 and 1.
        n_worst: How many pairs to return.

    Raises:
        InputError: Unknown rule, ratio or quantile out of range, too few vectors, or as `as_pair`.

    Source:
        The factor of three: Yoon et al., Diffusion probabilistic models generalize when they fail
        to memorize, 2023, section 3; Gu et al., On memorization in diffusion models, 2023,
        section 2. They compare with the second nearest training vector, which fails where the
        training data hold an image twice; hence the held-out data here.
    """
    samples, trained = as_pair(generated, training, ("generated", "training"))
    _, unseen = as_pair(samples, held_out, ("generated", "held_out"))
    require_rows(2, "memorisation's comparison with chance", unseen)
    if rule not in ("ratio", "calibrated"):
        raise InputError("bad_choice", f"rule={rule!r}; use 'ratio' or 'calibrated'")
    if not (np.isfinite(ratio) and ratio > 0.0 and 0.0 < quantile < 1.0):
        raise InputError(
            "bad_threshold",
            f"ratio={ratio} must be finite and above 0, quantile={quantile} between 0 and 1",
        )
    to_training, training_rows = nearest(samples, trained)
    to_unseen, unseen_rows = nearest(samples, unseen)
    ratios = _ratios(to_training, to_unseen)
    chance = unseen.once(("chance", trained), lambda: _ratios_by_chance(unseen, trained))
    threshold = ratio if rule == "ratio" else float(np.quantile(chance, quantile))
    order = np.argsort(ratios, kind="stable")[:n_worst]
    distances = to_training.sqrt().cpu().numpy(), to_unseen.sqrt().cpu().numpy()
    return Memorisation(
        rule=rule,
        threshold=threshold,
        near_copies=float(np.mean(ratios < threshold)),
        near_copies_by_chance=float(np.mean(chance < threshold)),
        closer_to_training=float(np.mean(ratios < 1.0)),
        closer_by_chance=float(np.mean(chance < 1.0)),
        ratios=ratios,
        worst=[
            NearCopy(
                generated_row=row,
                training_row=int(training_rows[row]),
                held_out_row=int(unseen_rows[row]),
                training_distance=float(distances[0][row]),
                held_out_distance=float(distances[1][row]),
                ratio=float(ratios[row]),
            )
            for row in order.tolist()
        ],
    )


def _ratios_by_chance(unseen: Sample, trained: Sample) -> NDArray[np.float64]:
    return _ratios(nearest(unseen, trained)[0], nearest_others(unseen)[0])


def _ratios(squared: torch.Tensor, squared_others: torch.Tensor) -> NDArray[np.float64]:
    """Return the ratio of two distances; equal ones, 0 and 0 too, have the ratio 1."""
    quotient = torch.where(squared == squared_others, 1.0, squared / squared_others)
    ratios: NDArray[np.float64] = quotient.sqrt().cpu().numpy()
    return ratios
