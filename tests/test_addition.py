"""What rules candidates out, against the converged costs of every one of them."""

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gadc import Objective
from gadc.objective.chord import MAX_STEPS, _Chords
from gadc.objective.differences import Differences, Seen
from gadc.objective.entropic_floor import entropic_floors
from gadc.objective.extension import Extension
from gadc.objective.fast_stack import FastStack
from gadc.objective.guides import Guides
from gadc.objective.likely import RESTING_DOUBT, Vacancies, _estimates
from gadc.objective.linear_bound import best_newcomers, linear_bounds
from gadc.objective.look import LEAST_GUIDED
from gadc.objective.newton_stack import NewtonStack, Race, solve
from gadc.objective.removal import without
from gadc.objective.resting import resting_estimates
from gadc.objective.starts import Starts
from gadc.objective.threads import Threads
from gadc.search import Candidates
from gadc.search.greedy import greedy, grow
from real_data import REAL_DATA, needs_real_data
from slow_search import slow_best_addition


def problem(seed: int, n: int) -> Objective:
    """A random class: round or stretched, in one piece or in three."""
    rng = np.random.default_rng(seed)
    d = int(rng.choice([3, 8, 16]))
    features = rng.normal(size=(n, d))
    if seed % 2:
        features *= np.exp(rng.normal(size=d))
    if seed % 3:
        features += 3.0 * rng.integers(0, 3, (n, 1))
    return Objective(
        features,
        capacity=float(rng.choice([1.01, 1.05, 1.5])),
        epsilon=float(rng.choice([0.005, 0.025, 0.1])),
    )


def extended(objective: Objective, base: list[int]) -> tuple[Extension, torch.Tensor, torch.Tensor]:
    """Return the base, all other images, and their potentials beside it."""
    extension = Extension.solved(objective.problem, objective.cost, torch.tensor(base))
    pool = torch.tensor(np.setdiff1d(np.arange(objective.n_images), base))
    return extension, pool, best_newcomers(extension, pool)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("m", [1, 5, 25])
def test_stack_equals_solving_one_by_one(seed: int, m: int) -> None:
    objective = problem(seed, 60)
    base = list(range(m))
    extension, pool, newcomers = extended(objective, base)
    costs, _ = solve(extension, pool, extension.with_newcomers(newcomers))
    alone = [objective.terms([*base, j])["transport"] for j in pool[::9].tolist()]
    np.testing.assert_allclose(costs[::9], alone, rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("m", [1, 5, 25])
def test_stack_with_a_row_left_out_equals_solving_what_remains(seed: int, m: int) -> None:
    objective = problem(seed, 60)
    base = list(range(m))
    extension, pool, newcomers = extended(objective, base)
    pool, newcomers = pool[::5], newcomers[::5]
    dropped = torch.arange(len(pool)) % m
    potentials = extension.with_newcomers(newcomers)
    costs, found = solve(extension, pool, potentials, dropped=dropped)
    for i, (j, place) in enumerate(zip(pool.tolist(), dropped.tolist(), strict=True)):
        rest = base[:place] + base[place + 1 :]
        assert costs[i] == pytest.approx(objective.terms([*rest, j])["transport"], rel=1e-6)
        stays = torch.arange(found.shape[1]) != place
        solution = objective.problem.solve(objective.cost[[*rest, j]].double()[None]).potentials
        slack_last = torch.cat([solution[:, : m - 1], solution[:, m:], solution[:, m - 1 : m]], 1)
        np.testing.assert_allclose(
            found[i, stays], slack_last[0], rtol=1e-5, atol=1e-4 * objective.scale
        )


@pytest.mark.parametrize("m", [12, 40])
def test_estimates_of_exchanges_are_near_their_costs(m: int) -> None:
    errors = []
    for seed in range(12):
        objective = problem(seed, 200)
        extension, pool, newcomers = extended(objective, list(range(m)))
        dropped = torch.arange(len(pool)) % m
        potentials = extension.with_newcomers(newcomers)
        stack = FastStack(extension, pool, potentials, dropped=dropped)
        stack.newton_step()
        estimates, _, _ = stack.evaluate()
        costs, _ = solve(extension, pool, potentials, dropped=dropped)
        errors.append((estimates - costs).abs() / objective.scale * m)
    assert float(torch.cat(errors).median()) < 0.02


@pytest.mark.parametrize("capacity", [1.0, 1.05])
@pytest.mark.parametrize("m", [5, 15, 40])
def test_steps_are_numbers_where_kernels_nearly_vanish(m: int, capacity: float) -> None:
    rng = np.random.default_rng(m)
    features = rng.normal(size=(200, 8)) + 3.0 * rng.integers(0, 3, (200, 1))
    objective = Objective(features, capacity=capacity, epsilon=0.005)
    extension, pool, newcomers = extended(objective, list(range(m)))
    dropped = torch.arange(len(pool)) % m
    stack = FastStack(extension, pool, extension.with_newcomers(newcomers), dropped=dropped)
    stack.newton_step()
    assert bool(stack.log_scaling.isfinite().all())
    assert bool((stack.log_scaling[:, :-1] != 0.0).any(1).all())  # a step that is none is zero
    hessian = NewtonStack(
        extension, pool, extension.with_newcomers(newcomers), dropped=dropped
    ).negative_hessian()
    assert bool(hessian.isfinite().all())
    for place in range(5):
        less = without(extension, place)
        assert bool(less.overlaps.sums(torch.ones_like(less.plan32[:1])).isfinite().all())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("m", [1, 5, 25])
def test_linear_programmes_value_is_below_the_cost_of_an_exchange(seed: int, m: int) -> None:
    objective = problem(seed, 60)
    extension, pool, newcomers = extended(objective, list(range(m)))
    dropped = torch.arange(len(pool)) % m
    potentials = extension.with_newcomers(newcomers)
    costs, _ = solve(extension, pool, potentials, dropped=dropped)
    stack = NewtonStack(extension, pool, potentials, dropped=dropped)
    assert bool((stack.lower_bounds() <= costs * (1.0 + 1e-9)).all())


@pytest.mark.parametrize("seed", range(12))
def test_the_best_of_a_race_is_solved(seed: int) -> None:
    objective = problem(seed, 120)
    extension, pool, newcomers = extended(objective, list(range(20)))
    potentials = extension.with_newcomers(newcomers)
    costs, _ = solve(extension, pool, potentials)
    group = torch.arange(len(pool)) % 7
    rest = torch.from_numpy(np.random.default_rng(seed).exponential(size=len(pool)))
    rest *= 0.01 * objective.scale
    race = Race(torch.full_like(costs, torch.inf), group, 7, rest)
    raced, _ = solve(extension, pool, potentials, rule=race)
    for number in range(7):
        best = (costs + rest)[group == number].min()
        assert float((raced + rest)[group == number].min()) == pytest.approx(float(best), rel=1e-6)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("m", [1, 4, 20])
def test_linear_bound_is_below_the_transport_cost(seed: int, m: int) -> None:
    objective = problem(seed, 90)
    extension, pool, newcomers = extended(objective, list(range(m)))
    costs, _ = solve(extension, pool, extension.with_newcomers(newcomers))
    shift = np.random.default_rng(seed).normal(size=len(pool)) * objective.scale
    for potentials in (newcomers, newcomers + torch.from_numpy(shift)):
        bounds = linear_bounds(extension, pool, potentials, scale=objective.scale)
        assert bool((bounds <= costs).all())


@pytest.mark.parametrize("m", [LEAST_GUIDED, 12, 30])
def test_estimates_are_within_their_margins(m: int) -> None:
    n_known = n_all = 0
    for seed in range(24):
        objective = problem(seed, 200)
        extension, pool, newcomers = extended(objective, list(range(m)))
        costs, _ = solve(extension, pool, extension.with_newcomers(newcomers))
        guides = Guides.among(objective._features, objective.cost)
        starts = Starts.unknown(len(objective.cost), len(guides.images), objective.cost.device)
        starts.met(extension, guides.images)
        order = torch.argsort(guides.group[pool], stable=True)
        pool, costs, newcomers = pool[order], costs[order], newcomers[order]
        solved = guides.beside(extension, pool, starts)
        potentials = solved.potentials[solved.place].clone()
        potentials[:, -1] = newcomers
        unknown = torch.full((len(pool),), torch.nan)
        chords = _Chords(extension, solved, solved.place, pool, potentials, unknown)
        for _ in range(MAX_STEPS):
            estimates, margins = chords.estimates()
            known = torch.isfinite(estimates) & torch.isfinite(margins)
            assert bool(((estimates - costs).abs() <= margins)[known].all()), seed
            n_known, n_all = n_known + int(known.sum()), n_all + len(known)
            chords.step()
    assert n_known > 0.3 * n_all  # margins that are never known would never be wrong


@pytest.mark.parametrize("m", [26, 40])
def test_estimates_that_start_from_another_base_are_within_their_margins(m: int) -> None:
    n_known = n_all = n_met = 0
    for seed in range(16):
        objective = problem(seed, 200)
        whole, pool, _ = extended(objective, list(range(m)))
        guides = Guides.among(objective._features, objective.cost)
        starts = Starts.unknown(len(objective.cost), len(guides.images), objective.cost.device)
        pool = pool[torch.argsort(guides.group[pool], stable=True)]
        for place in (0, 5, 11):
            base = without(whole, place)
            starts.met(base, guides.images)
            newcomers = starts.met(base, pool)
            costs, _ = solve(base, pool, base.with_newcomers(newcomers))
            solved = guides.beside(base, pool, starts)
            guided = solved.potentials[solved.place]
            differences, shown = starts.differences.beside(base.base, pool, guided.shape[1])
            met = shown.isfinite()
            potentials = guided + differences
            potentials[:, -1] = torch.where(met, potentials[:, -1], newcomers)
            chords = _Chords(base, solved, solved.place, pool, potentials, shown)
            for n_steps in range(MAX_STEPS):
                if n_steps:
                    chords.step()
                estimates, margins = chords.estimates()
                known = torch.isfinite(estimates) & torch.isfinite(margins)
                wrong = ((estimates - costs).abs() > margins)[known]
                assert not bool(wrong.any()), (seed, place, n_steps)
                n_known, n_all = n_known + int(known.sum()), n_all + len(known)
            n_met += int(met.sum())
            starts.remember_differences(
                Seen(base.base, pool, (chords.ahead - guided).float(), chords.margins.shown)
            )
    assert n_met > 0  # margins that are never known would never be wrong
    assert n_known > 0.3 * n_all


def test_differences_are_averages_of_what_bases_have_shown() -> None:
    images, pool = torch.arange(13), torch.tensor([13, 15])
    rng = np.random.default_rng(0)
    true = torch.from_numpy(rng.normal(size=(16, 15)))  # of 13 images, the slack and the newcomer
    seen = Differences.unknown(16, pool.device)
    for place in range(12):
        base = torch.cat([images[:place], images[place + 1 :]])
        rows = torch.cat([base, torch.tensor([13, 14])])
        noise = torch.from_numpy(rng.normal(size=(2, 14)))
        found, shown = seen.beside(base, pool, 14)
        if place == 0:
            assert not found.any()
            assert shown.isnan().all()
        if place == 1:
            assert not found[:, 0].any()  # of the image that was missing nothing is known
            assert found[:, 1:].all()
        if place > 2:
            off = (found - true[pool][:, rows]).square().mean().sqrt()
            assert off < 0.75 * noise.square().mean().sqrt()
            torch.testing.assert_close(shown, torch.full((2,), place - 1.0))
        differences = (true[pool][:, rows] + noise).float()
        seen = seen.plus(Seen(base, pool, differences, torch.full((2,), float(place))))
    # Of another candidate nothing is known, of another image in the base nothing but zero.
    assert seen.beside(images[:12], torch.tensor([14]), 14)[1].isnan().all()
    found, _ = seen.beside(torch.cat([images[:11], torch.tensor([14])]), pool, 14)
    assert not found[:, 11].any()


@pytest.mark.parametrize("is_known", [False, True])
def test_blocks_of_candidates_that_join_go_on_as_before(is_known: bool) -> None:
    objective = problem(3, 200)
    extension, pool, newcomers = extended(objective, list(range(30)))
    guides = Guides.among(objective._features, objective.cost)
    starts = Starts.unknown(len(objective.cost), len(guides.images), objective.cost.device)
    starts.met(extension, guides.images)
    order = torch.argsort(guides.group[pool], stable=True)
    pool, newcomers = pool[order], newcomers[order]
    solved = guides.beside(extension, pool, starts)
    potentials = solved.potentials[solved.place].clone()
    potentials[:, -1] = newcomers
    shown = torch.full((len(pool),), torch.nan)
    if is_known:
        shown[:70] = 0.03  # the first block takes no first step, the others do
    blocks = torch.arange(len(pool)).split(70)

    def chords() -> list[_Chords]:
        made = [
            _Chords(extension, solved, at, pool[at], potentials[at], shown[at]) for at in blocks
        ]
        for block in made:
            block.estimates()
            block.keep(block.at % 3 > 0)
        return made

    together, apart = _Chords.joined(chords()), chords()
    for _ in range(3):
        for block in [together, *apart]:
            block.step()
        joined = together.estimates()
        single = [torch.cat(part) for part in zip(*(b.estimates() for b in apart), strict=True)]
        for one, other in zip(joined, single, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * objective.scale)
    assert together.at.tolist() == [at for block in apart for at in block.at.tolist()]


@pytest.mark.parametrize("capacity", [1.0, 1.05, 1.5])
@pytest.mark.parametrize("m", [1, 5, 25])
def test_entropic_floors_are_below_the_entropic_values(m: int, capacity: float) -> None:
    for seed in range(4):
        features = np.random.default_rng(seed).normal(size=(120, 8))
        objective = Objective(features, capacity=capacity, epsilon=[0.01, 0.025, 0.1][seed % 3])
        extension, pool, newcomers = extended(objective, list(range(m)))
        # Where they were last is about where they are now.
        moved = torch.linspace(-0.5, 0.5, len(pool), dtype=torch.float64)
        begin = newcomers + objective.problem.epsilon * moved
        floors = entropic_floors(extension, pool, begin, Threads(pool.device, 1))
        floors += extension.potentials @ extension.masses[:-1]
        floors += extension.column @ extension.column_mass
        _, solved = solve(extension, pool, extension.with_newcomers(newcomers))
        scale, tiny = objective.scale, 1e-6 * objective.scale
        assert bool((floors <= dual_values(extension, pool, solved) + tiny).all())
        shifts = objective.problem.epsilon * torch.linspace(-2.0, 2.0, 161, dtype=torch.float64)
        alone = [
            dual_values(extension, pool, extension.with_newcomers(newcomers + shift))
            for shift in shifts
        ]
        best = torch.stack(alone).amax(0)  # of what the own potential can make of it
        assert bool((floors >= best - 5e-3 * scale / (m + 1)).all())


def dual_values(extension: Extension, pool: torch.Tensor, potentials: torch.Tensor) -> torch.Tensor:
    """Return the entropic dual at `potentials` [p, r + 1], as its definition has it."""
    epsilon = extension.problem.epsilon
    base = torch.logsumexp((potentials[:, :-1, None] - extension.base_costs) / epsilon, 1)  # [p, n]
    own = (potentials[:, -1:] - extension.cost[pool].double()) / epsilon
    columns = -epsilon * torch.logaddexp(base, own)
    return potentials @ extension.masses + columns @ extension.column_mass


@pytest.mark.parametrize("m", [12, 40])
def test_the_best_addition_of_a_large_class_is_promising(m: int) -> None:
    found = []
    for seed in range(12):
        objective = problem(seed, 400)
        base = np.random.default_rng(seed).permutation(400)[:m].tolist()
        pool = np.setdiff1d(np.arange(400), base)
        promising = objective.promising(base, pool, 8)
        found.append(objective.best_addition(base, pool).index in promising.tolist())
    assert sum(found) >= 10  # of clusters far apart, a few images say too little


@pytest.mark.parametrize("weights", [None, "concentrated"])
def test_best_additions_to_a_small_set_are_found_in_a_large_class(weights: str | None) -> None:
    rng = np.random.default_rng(0)
    n, found = 1500, 0
    counted = None
    if weights:
        counted = np.full(n, 1e-44)
        counted[rng.choice(n, 40, replace=False)] = 1.0
    features = rng.normal(size=(n, 6)) + 3.0 * np.eye(6)[np.arange(n) % 6]
    objective = Objective(features, target_weights=counted)
    for m in (1, 2, 4):
        base = rng.permutation(n)[:m].tolist()
        pool = np.setdiff1d(np.arange(n), base)
        promising = objective.promising(base, pool, 24).tolist()
        found += objective.best_addition(base, pool).index in promising
    assert found == 3


def test_grown_start_is_about_the_greedy_one() -> None:
    ratios = []
    for seed in range(6):
        objective = problem(seed, 150)
        grown = grow(objective, 6, Candidates(150))
        ratios.append(objective.value(grown) / greedy(objective, 6, Candidates(150)).values[-1])
    assert np.mean(ratios) <= 1.03


@pytest.mark.parametrize("m", [10, 25])
def test_rough_estimates_are_refined(m: int) -> None:
    features = np.random.default_rng(0).normal(size=(300, 24))
    features += 2.0 * np.random.default_rng(1).integers(0, 4, (300, 1))
    objective = Objective(features, epsilon=0.01)
    additions = objective._additions
    whole = additions._solved(list(range(m)))
    pools = [np.arange(m, 300)] * 2
    vacancies = Vacancies.of(additions._look, whole, [0, 1], pools)

    def errors(bar: float) -> torch.Tensor:
        starts = Starts.unknown(300, len(additions._look.guides.images), objective.cost.device)
        kept, values, _ = _estimates(
            additions._look, whole, vacancies, 4, 96, bar, starts, additions._threads
        )
        potentials = whole.with_newcomers(best_newcomers(whole, kept.pool))
        costs, _ = solve(whole, kept.pool, potentials, dropped=kept.dropped)
        return (values - costs - kept.rest).abs() * m / objective.scale

    rough, refined = errors(-np.inf), errors(np.inf)
    assert float(rough.mean()) > 0.01
    assert float(refined.mean()) < 0.7 * float(rough.mean())


@pytest.mark.parametrize("capacity", [1.0, 1.05, 1.5])
@pytest.mark.parametrize("m", [2, 5, 25])
def test_resting_estimates_price_what_rows_hold(m: int, capacity: float) -> None:
    too_high = []
    for seed in range(4):
        features = np.random.default_rng(seed).normal(size=(120, 8))
        objective = Objective(features, capacity=capacity, epsilon=[0.025, 0.05, 0.1][seed % 3])
        extension, pool, newcomers = extended(objective, list(range(m)))
        dropped = (torch.arange(len(pool)) * 3).div(len(pool), rounding_mode="floor") % m
        begin = newcomers + 0.3 * objective.problem.epsilon
        estimates, own = resting_estimates(extension, pool, begin, dropped, Threads(pool.device, 1))
        potentials = extension.with_newcomers(own)
        stack = NewtonStack(extension, pool, potentials, dropped=dropped)
        np.testing.assert_allclose(estimates, stack.estimates(), atol=2e-4 * objective.scale)
        before = NewtonStack(extension, pool, extension.with_newcomers(begin), dropped=dropped)
        own_error, own_error_before = (x.missing[:, -1].abs().mean() for x in (stack, before))
        assert float(own_error) < 0.5 * float(own_error_before)
        costs, _ = solve(extension, pool, potentials, dropped=dropped)
        low = costs <= costs.quantile(0.2)  # those that are looked for
        too_high.append(((estimates - costs) / objective.problem.epsilon * m)[low])
    assert float(torch.cat(too_high).quantile(0.95)) < RESTING_DOUBT


def test_resting_estimates_are_numbers_wherever_newcomers_begin() -> None:
    features = np.random.default_rng(0).normal(size=(60, 1))
    for epsilon, far in ((0.002, 0.0), (0.025, 150.0), (0.025, -150.0)):
        objective = Objective(features, capacity=1.05, epsilon=epsilon)
        _, _, newcomers = extended(objective, list(range(3)))
        extension, pool, _ = extended(objective, list(range(12)))
        begin = newcomers[9:] - far * objective.problem.epsilon
        dropped = torch.zeros_like(pool)
        estimates, own = resting_estimates(extension, pool, begin, dropped, Threads(pool.device, 1))
        assert bool(estimates.isfinite().all())
        assert bool(own.isfinite().all())


def test_exchanges_without_candidates_find_nothing() -> None:
    objective = problem(1, 60)
    nobody, somebody = np.empty(0, dtype=np.int64), np.arange(30, 60)
    chosen = list(range(6))
    for pools in ([nobody, nobody], [nobody, somebody], [somebody, nobody]):
        found = objective.likely_exchanges(chosen, [0, 3], pools, below=np.inf)
        assert [addition.index is None for addition in found] == [not len(pool) for pool in pools]


@needs_real_data
def test_exchanges_place_after_place_equal_solving_every_candidate() -> None:
    images = load_file(REAL_DATA / "cifar10" / "test_resnet56_features.safetensors")
    objective = Objective(images["features"][images["labels"] == 3][:240])
    chosen = np.random.default_rng(3).permutation(240)[:26].tolist()
    n_solved = 0
    for turn in range(0, 12, 4):
        places = list(range(turn, turn + 4))
        bases = [chosen[:place] + chosen[place + 1 :] for place in places]
        pools = [np.setdiff1d(np.arange(240), base) for base in bases]
        found = list(
            itertools.chain.from_iterable(
                objective.best_exchanges(chosen, places, pools, below=np.inf)
            )
        )
        for base, addition in zip(bases, found, strict=True):
            index, value = slow_best_addition(objective, base)
            assert addition.index == index
            assert addition.value == pytest.approx(value, rel=1e-7)
            n_solved += addition.n_solved
    assert n_solved < 0.2 * 12 * 215


@needs_real_data
@pytest.mark.parametrize("m", [2, 10, 40])
def test_best_addition_among_many_equals_solving_every_candidate(m: int) -> None:
    test_images = load_file(REAL_DATA / "cifar10" / "test_resnet56_features.safetensors")
    features = test_images["features"][test_images["labels"] == m % 10][:400]
    objective = Objective(features)
    base = np.random.default_rng(m).permutation(400)[: m - 1].tolist()
    index, value = slow_best_addition(objective, base)
    pool = np.setdiff1d(np.arange(400), base)
    for below in (np.inf, value * (1 + 1e-6)):
        best = objective.best_addition(base, pool, below=below)
        assert best.index == index
        assert best.value == pytest.approx(value, rel=1e-7)
        assert best.n_solved < 0.5 * len(pool)  # the guides have ruled most of them out
    assert objective.best_addition(base, pool, below=value * (1 - 1e-6)).index is None


def test_best_addition_where_every_guide_is_already_chosen() -> None:
    objective = problem(1, 300)
    guides = Guides.among(objective._features, objective.cost).images.tolist()
    base = sorted(guides)[: LEAST_GUIDED + 4]
    pool = np.setdiff1d(np.arange(300), guides)
    best = objective.best_addition(base, pool)
    values = objective.values(np.array([[*base, j] for j in pool]))
    assert best.value == pytest.approx(values.min(), rel=1e-7)
    likely = objective.likely_addition(base, pool)
    assert likely.value >= best.value * (1 - 1e-7)


def test_exchanges_equal_additions_to_what_stays() -> None:
    objective = problem(3, 300)
    chosen = np.random.default_rng(0).permutation(300)[:30].tolist()
    pool = np.setdiff1d(np.arange(300), chosen)
    places = [0, 7, 29]
    found = list(
        itertools.chain.from_iterable(
            objective.best_exchanges(chosen, places, [pool] * 3, below=np.inf)
        )
    )
    for place, exchange in zip(places, found, strict=True):
        alone = objective.best_addition(chosen[:place] + chosen[place + 1 :], pool)
        assert exchange.index == alone.index
        assert exchange.value == pytest.approx(alone.value, rel=1e-7)
