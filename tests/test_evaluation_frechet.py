"""The Fréchet distance against closed forms, scipy, torchmetrics and POT."""

import numpy as np
import ot
import pytest
import torch
from scipy.linalg import sqrtm

from gadc.errors import InputError
from gadc.evaluation.frechet import (
    FeatureStatistics,
    frechet_distance,
    frechet_distance_extrapolated,
)
from gadc.evaluation.sample import Sample
from gaussians import a_covariance, gaussian, with_moments

ROUNDING = 1e-10  # float64, sums of a few hundred squares near 1


def written_out(generated: np.ndarray, real: np.ndarray) -> float:
    gap = generated.mean(0) - real.mean(0)
    ours, theirs = np.cov(generated.T), np.cov(real.T)
    return float(gap @ gap + np.trace(ours + theirs - 2 * sqrtm(ours @ theirs).real))


def test_distance_of_commuting_gaussians_is_that_of_means_and_standard_deviations() -> None:
    deviations, others = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    mean = np.array([1.0, 0.0, -2.0])
    found = frechet_distance(
        generated=with_moments(40, mean, np.diag(deviations**2)),
        real=with_moments(90, np.zeros(3), np.diag(others**2), seed=1),
    )
    assert found.mean_term == pytest.approx(5.0, abs=ROUNDING)
    assert found.covariance_term == pytest.approx(((deviations - others) ** 2).sum(), abs=ROUNDING)
    assert found.value == pytest.approx(found.mean_term + found.covariance_term)
    assert not found.biased


def test_distance_matches_the_matrix_root_of_scipy_and_the_bures_distance_of_pot() -> None:
    ours, theirs = a_covariance(12), a_covariance(12, seed=1)
    generated = with_moments(50, np.ones(12), ours)
    real = with_moments(60, np.zeros(12), theirs, seed=2)
    found = frechet_distance(generated=generated, real=real).value
    assert found == pytest.approx(written_out(generated, real), rel=1e-8)
    bures = ot.gaussian.bures_wasserstein_distance(np.ones(12), np.zeros(12), ours, theirs)
    assert found == pytest.approx(bures**2, rel=1e-8)


def test_distance_matches_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    identity = torch.nn.Identity()
    identity.num_features = 16
    generated, real = gaussian(300, 16, 1, 0.3) * 1.5, gaussian(200, 16, 2)
    oracle = FrechetInceptionDistance(feature=identity)
    oracle.update(torch.from_numpy(generated), real=False)
    oracle.update(torch.from_numpy(real), real=True)
    found = frechet_distance(generated=generated, real=real).value
    assert found == pytest.approx(float(oracle.compute()), rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(400, 30), (20, 30)], ids=["full rank", "singular"])
def test_distance_of_a_sample_to_itself_is_zero(n: int, d: int) -> None:
    rows = 100.0 + gaussian(n, d) * np.logspace(-6, 2, d)
    assert frechet_distance(generated=rows, real=rows[::-1].copy()).value < 1e-6
    statistics = FeatureStatistics.of(rows)
    assert frechet_distance(generated=statistics, real=statistics).value < 1e-6


@pytest.mark.parametrize("n_generated", [2, 7, 30, 31])
def test_few_vectors_give_the_same_by_themselves_and_by_their_statistics(n_generated: int) -> None:
    generated, real = gaussian(n_generated, 30, 1), gaussian(90, 30, 2)
    from_rows = frechet_distance(generated=generated, real=real)
    from_statistics = frechet_distance(
        generated=FeatureStatistics.of(generated), real=FeatureStatistics.of(real)
    )
    assert from_rows.value == pytest.approx(from_statistics.value, rel=1e-8)
    assert from_rows.biased == from_statistics.biased == (n_generated <= 30)
    assert frechet_distance(generated=real, real=generated).biased == from_rows.biased


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_statistics_do_not_depend_on_the_batches(batch: int) -> None:
    rows = gaussian(500, 5, shift=1e4)
    streamed = FeatureStatistics(5)
    for start in range(0, 500, batch):
        streamed.update(rows[start : start + batch])
    assert streamed.n_rows == 500
    np.testing.assert_allclose(streamed.mean, rows.mean(0), rtol=1e-13)
    # 1e-8 is what the squares of numbers of 1e4 leave of float64; deviations keep more.
    np.testing.assert_allclose(streamed.covariance, np.cov(rows.T), atol=1e-10)


def test_merged_statistics_are_those_of_all_vectors() -> None:
    rows = gaussian(100, 5)
    merged = FeatureStatistics(5)
    for part in (rows[:30], rows[30:31], rows[31:]):
        merged.merge(FeatureStatistics.of(part))
    merged.merge(FeatureStatistics(5))
    np.testing.assert_allclose(merged.covariance, np.cov(rows.T), atol=1e-13)
    assert merged.n_rows == 100


def test_a_root_is_forgotten_when_more_vectors_come() -> None:
    rows = gaussian(60, 5)
    statistics = FeatureStatistics.of(rows[:30])
    before = statistics.root
    statistics.update(rows[30:])
    np.testing.assert_allclose(statistics.root.T @ statistics.root, np.cov(rows.T), atol=1e-12)
    assert not torch.equal(before, statistics.root)


def test_published_moments_stand_for_their_vectors() -> None:
    rows, generated = gaussian(80, 6), gaussian(40, 6, 1)
    given = FeatureStatistics.from_moments(rows.mean(0), np.cov(rows.T), n_rows=80)
    assert frechet_distance(generated=generated, real=given).value == pytest.approx(
        frechet_distance(generated=generated, real=rows).value, rel=1e-10
    )


def test_extrapolation_takes_the_bias_of_few_vectors_off() -> None:
    d, n, shift, scale = 32, 1000, 0.1, 1.2
    expected = d * shift**2 + d * (scale - 1.0) ** 2
    real = FeatureStatistics.from_moments(np.zeros(d), np.eye(d), n_rows=10**9)
    plain, extrapolated = [], []
    for seed in range(20):
        generated = scale * gaussian(n, d, seed=seed) + shift
        plain.append(frechet_distance(generated=generated, real=real).value - expected)
        found = frechet_distance_extrapolated(
            generated=generated, real=real, generator=np.random.default_rng(seed), smallest=300
        )
        extrapolated.append(found.value - expected)
    assert np.mean(plain) > 8 * np.std(plain) / np.sqrt(20)
    # Four standard errors; what the line leaves, of the next order 1 / n^2, drowns in them.
    assert abs(np.mean(extrapolated)) < 4 * np.std(extrapolated) / np.sqrt(20)
    assert abs(np.mean(extrapolated)) < 0.3 * np.mean(plain)


def test_extrapolation_looks_at_even_sizes_up_to_all() -> None:
    generated, real = gaussian(600, 3), gaussian(500, 3, 1, 0.2)
    found = frechet_distance_extrapolated(
        generated=generated, real=real, generator=np.random.default_rng(0), n_points=4
    )
    assert found.sizes == [60, 240, 420, 600]
    whole = frechet_distance(generated=generated, real=real).value
    assert found.distances[-1] == pytest.approx(whole, rel=1e-9)
    line = [found.value + found.slope / size for size in found.sizes]
    assert sum(line) == pytest.approx(sum(found.distances))  # residuals of a fitted line


def test_a_sample_computes_its_statistics_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Sample(gaussian(50))
    first = frechet_distance(generated=gaussian(9, seed=1), real=real)
    monkeypatch.setattr(FeatureStatistics, "update", None)
    again = frechet_distance(generated=gaussian(3, seed=1), real=real)
    assert first.value != again.value


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("too_few_rows", lambda: frechet_distance(generated=gaussian(1), real=gaussian(9))),
        ("too_few_rows", lambda: frechet_distance(generated=gaussian(9), real=gaussian(1))),
        (
            "too_few_rows",
            lambda: frechet_distance(generated=FeatureStatistics(4), real=gaussian(9)),
        ),
        ("width_mismatch", lambda: frechet_distance(generated=gaussian(9, 3), real=gaussian(9))),
        ("width_mismatch", lambda: FeatureStatistics(3).update(gaussian(9))),
        ("width_mismatch", lambda: FeatureStatistics(3).merge(FeatureStatistics(4))),
        ("bad_shape", lambda: FeatureStatistics(0)),
        ("bad_shape", lambda: FeatureStatistics.from_moments([0.0], [1.0], n_rows=5)),
        ("too_few_rows", lambda: FeatureStatistics.from_moments([0.0], [[1.0]], n_rows=1)),
        (
            "features_not_finite",
            lambda: FeatureStatistics.from_moments([np.nan], [[1.0]], n_rows=5),
        ),
        (
            "covariance_not_psd",
            lambda: FeatureStatistics.from_moments([0.0, 0.0], [[1.0, 2.0], [0.0, 1.0]], n_rows=5),
        ),
        (
            "covariance_not_psd",
            lambda: (
                FeatureStatistics.from_moments([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], n_rows=5).root
            ),
        ),
        (
            "too_few_rows",
            lambda: frechet_distance_extrapolated(
                generated=gaussian(5), real=gaussian(9), generator=np.random.default_rng(0)
            ),
        ),
    ],
)
def test_bad_input_is_an_error_with_its_code(code: str, call: object) -> None:
    with pytest.raises(InputError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code == code
