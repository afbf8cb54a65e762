"""Kicks: what they leave untouched, and when they end."""

import numpy as np
import pytest

from gadc import Objective
from gadc.forks import on_cores
from gadc.objective.look import Addition
from gadc.search.candidates import Candidates
from gadc.search.counts import Counts
from gadc.search.descent import Descended, descend
from gadc.search.restarts import kick


def problem() -> tuple[Objective, Candidates, Descended]:
    with on_cores(1):  # what the tests put into it is watched in this process
        objective = Objective(np.random.default_rng(0).normal(size=(60, 4)))
    candidates = Candidates(60)
    return objective, candidates, descend(objective, list(range(6)), candidates)


def test_a_kick_that_finds_nobody_has_failed_and_others_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective, candidates, best = problem()
    n_looks = 0

    def nobody(chosen: list[int], pool: np.ndarray) -> Addition:
        nonlocal n_looks
        n_looks += 1
        return Addition(None, np.inf, 0, len(pool))

    monkeypatch.setattr(objective, "likely_addition", nobody)
    generator = np.random.default_rng(0)
    found = kick(objective, best, candidates, patience=4, generator=generator)
    assert (found.indices, found.value) == (best.indices, best.value)
    assert n_looks == 4


def test_kicks_end_where_nobody_is_left_to_replace_images() -> None:
    objective, _, best = problem()
    others = np.setdiff1d(np.arange(60), best.indices)
    candidates = Candidates(60, exclude=others[1:].tolist())
    generator = np.random.default_rng(0)
    found = kick(objective, best, candidates, patience=4, generator=generator)
    assert (found.indices, found.value) == (best.indices, best.value)


def test_a_kick_never_makes_it_worse_and_keeps_what_must_stay() -> None:
    objective, _, best = problem()
    candidates = Candidates(60, keep=best.indices[:3])
    start = Descended(best.indices, best.value, Counts())
    generator = np.random.default_rng(1)
    found = kick(objective, start, candidates, patience=6, generator=generator)
    assert found.value <= best.value
    assert set(best.indices[:3]) <= set(found.indices)
    assert found.value == pytest.approx(objective.value(found.indices), rel=1e-6)


def test_a_descent_ends_where_one_has_ended_before(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, candidates, best = problem()
    start = list(range(6))
    n_looks = 0
    look = objective.likely_exchanges

    def counted(*args: object, **kwargs: object) -> list[Addition]:
        nonlocal n_looks
        n_looks += 1
        return look(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(objective, "likely_exchanges", counted)
    objective.forget()
    assert descend(objective, start, candidates).indices == best.indices
    n_to_the_end = n_looks
    n_looks = 0
    objective.forget()
    known = {frozenset(best.indices)}
    assert descend(objective, start, candidates, known=known).indices == best.indices
    assert 0 < n_looks < n_to_the_end
    n_looks = 0
    assert descend(objective, best.indices, candidates, known=known).indices == best.indices
    assert n_looks == 0
