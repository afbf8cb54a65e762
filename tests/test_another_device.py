"""Searches on a device that is not the CPU take the same steps, and seldom wait for it."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import gadc
from another_device import DEVICE, another_device
from gadc.per_class.selection import ClassSettings, ClassTask, select_class


def blobs(n: int, d: int = 12) -> np.ndarray:
    rng = np.random.default_rng(n)
    centres = 3.0 * rng.normal(size=(6, d))
    return (centres[rng.integers(0, 6, n)] + rng.normal(size=(n, d))).astype(np.float32)


def task_of(n_selected: int, n: int = 160, **settings: Any) -> ClassTask:
    return ClassTask(
        name="all",
        features=blobs(n),
        n_selected=n_selected,
        settings=ClassSettings(**{"confidence_weight": 0.0, **settings}),
    )


@pytest.mark.parametrize(
    "task",
    [
        task_of(6),
        task_of(12, start="best", patience=1),
        task_of(12, mean_weight=0.0, std_weight=0.0, capacity=1.0, patience=1),
        task_of(26, n=90, patience=0),
        task_of(2, n=20),
        task_of(9, nested=(3, 9), patience=1),
        dataclasses.replace(
            task_of(5, confidence_weight=0.5),
            confidence_loss=np.linspace(0.0, 2.0, 160),
            target=blobs(90),
            target_weights=np.arange(90.0),
            keep=(3,),
            exclude=(4, 5),
        ),
    ],
)
def test_the_same_is_selected_as_on_the_cpu(task: ClassTask) -> None:
    here = select_class(task)
    with another_device() as device:
        there = select_class(dataclasses.replace(task, device=DEVICE))
    assert device.n_operations > 100
    assert sorted(there.order) == sorted(here.order)
    assert there.terms["total"] == pytest.approx(here.terms["total"], rel=1e-6)
    assert there.is_swap_optimal


def test_the_device_is_seldom_waited_for() -> None:
    task = task_of(12, n=300)
    with another_device() as device:
        select_class(dataclasses.replace(task, device=DEVICE))
    assert device.n_waits < 0.03 * device.n_operations


@pytest.mark.parametrize("capacity", [1.0, 1.05])
def test_transport_on_the_device_of_its_costs(capacity: float) -> None:
    cost = torch.from_numpy(np.random.default_rng(0).random((3, 5, 40)))
    here = gadc.partial_transport(cost, capacity=capacity, epsilon=0.02)
    with another_device():
        there = gadc.partial_transport(cost.to(DEVICE), capacity=capacity, epsilon=0.02)
        assert there.transport_cost.device.type == DEVICE
        found = there.transport_cost.cpu()
    np.testing.assert_allclose(found, here.transport_cost, rtol=1e-9)


def test_two_devices_do_not_mix() -> None:
    with another_device():
        there = torch.ones(3).to(DEVICE)
        with pytest.raises(RuntimeError, match="on the CPU"):
            _ = there + torch.ones(3)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        assert (there + 1.0).tolist() == [2.0, 2.0, 2.0]
