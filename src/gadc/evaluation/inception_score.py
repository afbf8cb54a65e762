"""The Inception score: sure of each image, and of every class over all of them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from gadc.errors import InputError
from gadc.evaluation.sample import Sample

N_SPLITS = 10
"""As Salimans et al., who split 50,000 images."""
SUM_TOLERANCE = 1e-3
"""How far float16 probabilities of a thousand classes may be from summing to 1."""


@dataclass(frozen=True)
class InceptionScore:
    """An Inception score over splits.

    Attributes:
        mean: 1 to the number of classes; higher is better.
        sd: Standard deviation over the splits (n - 1); 0 for a single one.
        n_splits: How many.
        n_per_split: Images in the smallest of them.
    """

    mean: float
    sd: float
    n_splits: int
    n_per_split: int


def inception_score(
    probabilities: ArrayLike | torch.Tensor,
    *,
    n_splits: int = N_SPLITS,
    generator: np.random.Generator | None = None,
) -> InceptionScore:
    """Return `exp(mean_x KL(p(y|x) | p(y)))`, the mean over splits of the images.

    Biased downwards by about (c - 1) / (2 n) in its logarithm for splits of n images and c
    classes: compare at equal numbers of images and splits.

    Args:
        probabilities: Class probabilities [n, c] of generated images.
        n_splits: Number of splits, at most n.
        generator: Shuffles the images first. Default: splits of consecutive images, as published
            evaluators do; wrong for images that are sorted by class.

    Raises:
        InputError: `bad_splits`, `probabilities_not_normalised`, or not finite numbers [n, c].

    Source:
        Salimans et al., Improved techniques for training GANs, 2016, section 4.
    """
    rows = Sample(probabilities, "probabilities").rows.double()
    sums = rows.sum(1)
    bad = torch.nonzero((rows < 0.0).any(1) | ((sums - 1.0).abs() > SUM_TOLERANCE))[:, 0]
    if len(bad):
        raise InputError(
            "probabilities_not_normalised",
            f"probabilities: {len(bad)} rows are negative or don't sum to 1 within "
            f"{SUM_TOLERANCE}, first {int(bad[0])}; use inception_score_of_logits for logits",
        )
    return _score((rows / sums[:, None]).log(), n_splits, generator)


def inception_score_of_logits(
    logits: ArrayLike | torch.Tensor,
    *,
    n_splits: int = N_SPLITS,
    generator: np.random.Generator | None = None,
) -> InceptionScore:
    """Return `inception_score` of the softmax of logits [n, c]; see there."""
    rows = Sample(logits, "logits").rows.double()
    return _score(rows.log_softmax(1), n_splits, generator)


def _score(
    log_p: torch.Tensor, n_splits: int, generator: np.random.Generator | None
) -> InceptionScore:
    n = len(log_p)
    if not 1 <= n_splits <= n:
        raise InputError(
            "bad_splits", f"n_splits={n_splits} must lie between 1 and {n}, the images"
        )
    if generator is not None:
        log_p = log_p[torch.from_numpy(generator.permutation(n)).to(log_p.device)]
    splits = log_p.tensor_split(n_splits)
    scores = [float(_divergence(split).exp()) for split in splits]
    sd = float(np.std(scores, ddof=1)) if n_splits > 1 else 0.0
    return InceptionScore(float(np.mean(scores)), sd, n_splits, min(len(s) for s in splits))


def _divergence(log_p: torch.Tensor) -> torch.Tensor:
    """Return the mean over images of KL(p(y|x) | p(y)); classes of probability 0 add nothing."""
    p = log_p.exp()
    log_mean = p.mean(0).log()
    terms = p * (log_p - log_mean)
    return torch.where(p > 0.0, terms, 0.0).sum(1).mean()
