"""DDPM and the interpolant: losses, schedules and samplers against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import mixture
from gadc.errors import InputError
from gadc.sampling.diffusion import respaced, sample_ddim, sample_ddpm
from gadc.sampling.flow import sample_euler, sample_euler_maruyama, sample_heun
from gadc.sampling.noise import ImageNoise
from gadc.training.ddpm import GaussianDiffusion, Schedule, linear_betas
from gadc.training.engine import new_network
from gadc.training.interpolant import LinearInterpolant
from gadc.training.processes import Process
from gadc.training.transformer import Size, TransformerShape

POINTS = (2, 60, 60)
"""One "image" whose 3600 pixels are points in the plane, so that one generator draws them all."""


def as_points(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2).reshape(-1, 2)


def as_pixels(points: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return points.view(len(like), -1, 2).transpose(1, 2).reshape(like.shape)


def exact_velocity(x: torch.Tensor, time: float) -> torch.Tensor:
    t = time / 1000
    x0, noise = mixture.denoised(as_points(x), 1 - t, t)
    return as_pixels(noise - x0, x)


def exact_noise(x: torch.Tensor, time: float) -> torch.Tensor:
    alpha_bar = Schedule(linear_betas()).alpha_bars[int(time)]
    _, noise = mixture.denoised(as_points(x), alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
    predicted = as_pixels(noise, x)
    return torch.cat([predicted, torch.zeros_like(predicted)], dim=1)


# Of 3600 points: share ± 0.008, mean ± 0.008 and spread ± 0.005 (one sigma, smallest component).
# Four sigma, and what the steps' finite size adds.
@pytest.mark.parametrize(
    ("solve", "predict", "n_steps"),
    [
        (sample_euler, exact_velocity, 250),
        (sample_heun, exact_velocity, 40),
        (sample_euler_maruyama, exact_velocity, 250),
        (sample_ddpm, exact_noise, 250),
        (sample_ddim, exact_noise, 250),
    ],
)
def test_exact_model_recovers_the_mixture(solve, predict, n_steps) -> None:  # type: ignore[no-untyped-def]
    noise = ImageNoise(0, [0], POINTS)
    points = as_points(solve(predict, noise, n_steps=n_steps, is_bounded=False))
    share, centre, spread = mixture.deviations(points)
    assert share < 0.035
    assert centre < 0.04
    assert spread < 0.03


def test_wrong_velocity_does_not_recover_the_mixture() -> None:
    def halved(x: torch.Tensor, time: float) -> torch.Tensor:
        return 0.5 * exact_velocity(x, time)

    points = as_points(
        sample_heun(halved, ImageNoise(0, [0], POINTS), n_steps=40, is_bounded=False)
    )
    assert max(mixture.deviations(points)) > 0.1


def test_heun_is_of_second_order() -> None:
    def solved(n_steps: int) -> torch.Tensor:
        noise = ImageNoise(0, [0], POINTS)
        return sample_heun(exact_velocity, noise, n_steps=n_steps, is_bounded=False)

    reference = solved(320)
    errors = [float((solved(n) - reference).square().mean().sqrt()) for n in (20, 40)]
    assert errors[0] / errors[1] > 3.0  # 4 for second order, 2 for first


def test_ddim_and_euler_solve_the_same_equation() -> None:
    # Both end where the probability flow ends, up to the two processes' different starts.
    points = as_points(
        sample_ddim(exact_noise, ImageNoise(0, [0], POINTS), n_steps=250, is_bounded=False)
    )
    # ᾱ of the last time is 4e-5: noise is all there is, as at t = 1 of the interpolant.
    ends = as_points(
        sample_heun(exact_velocity, ImageNoise(0, [0], POINTS), n_steps=100, is_bounded=False)
    )
    assert float((points - ends).norm(dim=1).median()) < 0.05


@pytest.mark.parametrize(
    "process", [LinearInterpolant(), GaussianDiffusion()], ids=["flow", "ddpm"]
)
def test_trained_model_recovers_the_mixture(process: Process) -> None:
    shape = TransformerShape(
        Size(depth=2, width=64, n_heads=2), 1, 1, 2, 2 * process.prediction_factor, n_classes=0
    )
    network = new_network(shape, seed=0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0, fused=True)
    source = torch.Generator().manual_seed(0)
    n_steps = 500
    for step in range(n_steps):
        for group in optimiser.param_groups:  # settles in the end, in place of an average
            group["lr"] = 2e-3 * min(1.0, 2 * (1 - step / n_steps))
        x0 = mixture.draw(256, source)[:, :, None, None]
        noise = torch.randn(x0.shape, generator=source)
        uniform = torch.rand(256, generator=source, dtype=torch.float64)
        loss = process.loss(lambda x, t: network(x, t).prediction, x0, noise, uniform)
        loss.total.mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    @torch.no_grad()
    def predict(x: torch.Tensor, time: float) -> torch.Tensor:
        return network(x, torch.full((len(x),), time)).prediction

    noises = ImageNoise(1, range(1500), (2, 1, 1))
    solve = sample_heun if isinstance(process, LinearInterpolant) else sample_ddpm
    steps = 15 if isinstance(process, LinearInterpolant) else 60
    points = as_points(solve(predict, noises, n_steps=steps, is_bounded=False))
    share, centre, spread = mixture.deviations(points)
    assert share < 0.1
    assert centre < 0.15
    assert spread < 0.12


def test_respacing_keeps_the_noise_levels() -> None:
    whole = Schedule(linear_betas())
    for n_steps in (1, 2, 50, 250, 1000):
        times, schedule = respaced(n_steps)
        assert len(times) == n_steps
        assert times[-1] == 999
        np.testing.assert_allclose(schedule.alpha_bars, whole.alpha_bars[times], rtol=1e-10)
    np.testing.assert_allclose(respaced(1000)[1].betas, linear_betas(), rtol=1e-9)


@pytest.mark.parametrize("n_steps", [0, 1001])
def test_respacing_outside_the_trained_times_is_an_error(n_steps: int) -> None:
    with pytest.raises(InputError) as caught:
        respaced(n_steps)
    assert caught.value.code == "steps_range"


def test_posterior_is_bayes() -> None:
    # q(x_{t-1} | x_t, x0) from the product of its two normal densities.
    schedule = Schedule(linear_betas())
    t, x0, x_t = 400, 0.3, -0.7
    alpha, before = 1 - schedule.betas[t], schedule.alpha_bars[t - 1]
    precision = alpha / schedule.betas[t] + 1 / (1 - before)
    mean = (alpha**0.5 * x_t / schedule.betas[t] + before**0.5 * x0 / (1 - before)) / precision
    assert schedule.posterior_variances[t] == pytest.approx(1 / precision, rel=1e-12)
    assert schedule.mean_x0[t] * x0 + schedule.mean_xt[t] * x_t == pytest.approx(mean, rel=1e-12)


def test_bound_vanishes_for_the_true_posterior() -> None:
    process = GaussianDiffusion()
    x0, noise = torch.rand(8, 2, 3, 3) * 2 - 1, torch.randn(8, 2, 3, 3)
    uniform = torch.linspace(0.01, 0.999, 8, dtype=torch.float64)
    loss = process.loss(
        lambda _x, _t: torch.cat([noise, -torch.ones_like(noise)], 1), x0, noise, uniform
    )
    assert float(loss.terms["simple"].abs().max()) == 0.0
    assert float(loss.terms["vlb"].abs().max()) < 1e-4  # float32: differences of logarithms


def test_bound_is_the_divergence_in_bits() -> None:
    process, time = GaussianDiffusion(), 300
    schedule = process.schedule
    x0, noise = torch.rand(1, 1, 2, 2) * 2 - 1, torch.randn(1, 1, 2, 2)
    predicted, v = torch.randn(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.2)
    uniform = torch.tensor([(time + 0.5) / 1000], dtype=torch.float64)
    found = process.loss(lambda _x, _t: torch.cat([predicted, v], 1), x0, noise, uniform)
    alpha_bar = schedule.alpha_bars[time]
    x_t = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
    estimate = (x_t - (1 - alpha_bar) ** 0.5 * predicted) / alpha_bar**0.5
    log_std = 0.5 * (0.6 * schedule.log_largest[time] + 0.4 * schedule.log_smallest[time])

    def mean(of: torch.Tensor) -> torch.Tensor:
        return schedule.mean_x0[time] * of + schedule.mean_xt[time] * x_t

    true = Normal(mean(x0), schedule.posterior_variances[time] ** 0.5)
    model = Normal(mean(estimate), math.exp(log_std))
    expected = kl_divergence(true, model).mean() / math.log(2)
    assert float(found.terms["vlb"]) == pytest.approx(float(expected), rel=1e-4)


def test_first_time_is_a_likelihood_of_levels() -> None:
    process = GaussianDiffusion()
    x0 = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1) * (254 / 255)
    noise, predicted = torch.randn(1, 3, 1, 1), torch.randn(1, 3, 1, 1)
    v = torch.zeros(1, 3, 1, 1)
    uniform = torch.zeros(1, dtype=torch.float64)
    found = process.loss(lambda _x, _t: torch.cat([predicted, v], 1), x0, noise, uniform)
    schedule = process.schedule
    x_t = schedule.signal[0] * x0 + schedule.sigma[0] * noise
    mean = (x_t - schedule.sigma[0] * predicted) / schedule.signal[0]
    model = Normal(mean, math.exp(0.25 * (schedule.log_largest[0] + schedule.log_smallest[0])))
    probability = model.cdf(x0 + 1 / 255) - model.cdf(x0 - 1 / 255)
    expected = -probability.clamp(min=1e-12).log().mean() / math.log(2)
    assert float(found.terms["vlb"]) == pytest.approx(float(expected), rel=1e-3)


def test_bound_trains_the_variance_alone() -> None:
    process = GaussianDiffusion()
    x0, noise = torch.rand(4, 1, 2, 2), torch.randn(4, 1, 2, 2)
    output = torch.randn(4, 2, 2, 2, requires_grad=True)
    loss = process.loss(lambda _x, _t: output, x0, noise, torch.rand(4, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss.terms["vlb"].sum(), output)
    assert not gradient[:, 0].any()
    assert gradient[:, 1].any()


def test_velocity_loss_is_zero_for_the_velocity() -> None:
    x0, noise = torch.randn(5, 2, 3, 3), torch.randn(5, 2, 3, 3)
    uniform = torch.rand(5, dtype=torch.float64)
    seen = []

    def predict(x_t: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        seen.append((x_t, times))
        return noise - x0

    loss = LinearInterpolant().loss(predict, x0, noise, uniform)
    t = uniform.float().view(-1, 1, 1, 1)
    assert not loss.total.any()
    torch.testing.assert_close(seen[0][0], (1 - t) * x0 + t * noise)
    torch.testing.assert_close(seen[0][1], uniform.float() * 1000)
