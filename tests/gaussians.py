"""Samples with moments that are known, exactly or as a distribution's."""

import numpy as np


def gaussian(n: int, d: int = 4, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1.0, (n, d))


def with_moments(n: int, mean: np.ndarray, covariance: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return n > d vectors whose sample mean and unbiased covariance are exactly these."""
    rows = gaussian(n, len(mean), seed)
    rows -= rows.mean(axis=0)
    whitened = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def a_covariance(d: int, seed: int = 0) -> np.ndarray:
    factor = gaussian(2 * d, d, seed)
    return factor.T @ factor / (2 * d)
