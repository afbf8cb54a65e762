"""Runs that are killed, repeated, or fail; and runs with several workers."""

import dataclasses
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import pytest
import torch

import kill_child
from feature_sets import feature_set, quick, records, with_features
from gadc import Subset
from gadc.condense import RECORDS_FOLDER, CondenseConfig, condense
from gadc.errors import ConvergenceWarning, InputError, RunError
from gadc.features.store import FeatureSet
from gadc.forks import on_cores
from gadc.per_class import selection, workers
from gadc.per_class.selection import ClassSelection, ClassTask
from gadc.storage import TEMPORARY_PREFIX, exclusive
from gadc.subset import SUBSET_NAME
from waiting import PATIENCE_SECONDS, is_running, wait_until

N_KILLS = int(os.environ.get("GADC_KILLS", "3"))


def kill_child_inputs() -> tuple[FeatureSet, CondenseConfig]:
    return feature_set(*kill_child.CLASS_SIZES), CondenseConfig(**kill_child.CONFIG)


@pytest.fixture(scope="module")
def undisturbed_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """Return what a run writes, and the seconds in which it may be killed."""
    out = tmp_path_factory.mktemp("undisturbed")
    features, config = kill_child_inputs()
    started = time.monotonic()
    condense(features, config, out=out)
    return (out / SUBSET_NAME).read_bytes(), time.monotonic() - started


@pytest.fixture
def undisturbed(undisturbed_run: tuple[bytes, float]) -> bytes:
    return undisturbed_run[0]


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_number_of_workers_does_not_change_a_byte(
    undisturbed: bytes, tmp_path: Path, n_workers: int
):
    features, config = kill_child_inputs()
    condense(features, config, out=tmp_path, workers=n_workers)
    assert (tmp_path / SUBSET_NAME).read_bytes() == undisturbed


@pytest.mark.parametrize("trial", range(N_KILLS))
def test_killed_run_ends_with_the_same_bytes(
    undisturbed_run: tuple[bytes, float], tmp_path: Path, trial: int
):
    undisturbed, run_seconds = undisturbed_run
    child = start_child(tmp_path, n_workers=1)
    time.sleep(random.Random(trial).uniform(0.0, run_seconds))
    child.kill()
    child.wait()
    n_recorded = len(list((tmp_path / RECORDS_FOLDER).glob("[0-9]*.json")))

    features, config = kill_child_inputs()
    subset = condense(features, config, out=tmp_path)
    assert (tmp_path / SUBSET_NAME).read_bytes() == undisturbed
    assert subset.run_counts["reused"] == n_recorded
    assert subset.run_counts["corrupt"] == 0
    assert not list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_workers_end_with_a_killed_parent(undisturbed: bytes, tmp_path: Path):
    child = start_child(tmp_path, n_workers=2)
    wait_until(lambda: len(children_of(child.pid)) >= 2)  # a worker, and multiprocessing's tracker
    worker_ids = children_of(child.pid)
    child.kill()
    child.wait()
    wait_until(lambda: not any(is_running(worker) for worker in worker_ids))
    features, config = kill_child_inputs()
    condense(features, config, out=tmp_path)
    assert (tmp_path / SUBSET_NAME).read_bytes() == undisturbed


def start_child(out: Path, *, n_workers: int) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, kill_child.__file__, str(out), str(n_workers)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def children_of(process: int) -> list[int]:
    return [
        int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def test_killed_worker_is_a_clear_error_and_finished_classes_stay(tmp_path: Path):
    features, config = kill_child_inputs()

    def kill_a_worker() -> None:
        wait_until(lambda: multiprocessing.active_children())
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    with pytest.raises(RunError, match="run the same command again") as raised:
        condense(features, config, out=tmp_path, workers=2)
    killer.join()
    assert raised.value.code == "worker_died"
    assert not (tmp_path / SUBSET_NAME).exists()


@pytest.mark.parametrize("is_begun", [False, True])
def test_pool_ends_where_a_worker_dies_while_another_is_started(
    monkeypatch: pytest.MonkeyPatch, is_begun: bool
) -> None:
    start = SpawnProcess.start
    started: list[SpawnProcess] = []
    tasks: list[Future[None]] = []
    errors: list[BaseException] = []

    def start_amid_a_death(process: SpawnProcess) -> None:
        if is_begun:
            start(process)
        if started:
            started[0].kill()
            assert isinstance(tasks[0].exception(timeout=PATIENCE_SECONDS), BrokenProcessPool)
            time.sleep(0.5)  # the pool ends the workers that it knows
        if not is_begun:
            start(process)
        started.append(process)

    def use_pool() -> None:
        try:
            with workers.worker_pool(2) as pool:
                tasks.append(pool.submit(time.sleep, 600))
                tasks.append(pool.submit(time.sleep, 600))
                tasks[0].result()
        except BrokenProcessPool as error:
            errors.append(error)

    monkeypatch.setattr(SpawnProcess, "start", start_amid_a_death)
    user = threading.Thread(target=use_pool, daemon=True)
    user.start()
    user.join(timeout=60)
    has_ended = not user.is_alive()
    for process in started:
        process.kill()
    assert has_ended
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("bad value(s) in fds_to_keep"), BrokenProcessPool),
        (InputError("epsilon_range", "epsilon must be > 0"), InputError),
    ],
)
def test_errors_of_a_pool_whose_worker_died_say_so(
    error: Exception, expected: type[Exception]
) -> None:
    def fail_after_a_death() -> None:
        with workers.worker_pool(1) as pool:
            task = pool.submit(time.sleep, 600)
            wait_until(lambda: multiprocessing.active_children())
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            assert isinstance(task.exception(timeout=PATIENCE_SECONDS), BrokenProcessPool)
            raise error

    with pytest.raises(expected):
        fail_after_a_death()


def test_repeated_run_computes_nothing(tmp_path: Path):
    features = feature_set(12, 9)
    first = condense(features, quick(), out=tmp_path)
    content = (tmp_path / SUBSET_NAME).read_bytes()
    again = condense(features, quick(), out=tmp_path)
    assert first.run_counts == {"computed": 2, "reused": 0, "corrupt": 0}
    assert again.run_counts == {"computed": 0, "reused": 2, "corrupt": 0}
    assert (tmp_path / SUBSET_NAME).read_bytes() == content


def test_only_a_changed_class_is_computed_again(tmp_path: Path):
    features = feature_set(12, 9)
    condense(features, quick(confidence_weight=0.0), out=tmp_path)
    values = features.features.copy()
    values[-1] += 1
    changed = with_features(features, values)
    again = condense(changed, quick(confidence_weight=0.0), out=tmp_path)
    assert again.run_counts == {"computed": 1, "reused": 1, "corrupt": 0}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "list"])
def test_corrupt_record_is_set_aside_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
):
    features = feature_set(12, 9)
    condense(features, quick(), out=tmp_path)
    content = (tmp_path / SUBSET_NAME).read_bytes()
    record = sorted((tmp_path / RECORDS_FOLDER).glob("*.json"))[0]
    text = record.read_bytes()
    place = text.index(b'"total"') + len(b'"total": ')
    changed = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
    record.write_bytes(
        {"flip": changed, "cut": text[: len(text) // 2], "empty": b"", "list": b"[]"}[damage]
    )
    with caplog.at_level(logging.WARNING, "gadc"):
        again = condense(features, quick(), out=tmp_path)
    assert again.run_counts == {"computed": 1, "reused": 1, "corrupt": 1}
    assert (tmp_path / SUBSET_NAME).read_bytes() == content
    assert record.with_name(record.name + ".corrupt").exists()
    assert "is corrupt" in caplog.text


def test_classes_that_share_a_device_are_what_they_are_alone() -> None:
    rng = np.random.default_rng(0)
    tasks = [
        (
            label,
            ClassTask(
                name=str(label),
                features=rng.normal(size=(40, 5)).astype(np.float32),
                n_selected=3,
                settings=selection.ClassSettings(),
            ),
        )
        for label in range(5)
    ]
    found: dict[int, ClassSelection] = {}
    with on_cores(1):
        workers.select_classes(tasks, found.__setitem__, n_workers=3, share_device=True)
        for label, task in tasks:
            alone = selection.select_class(task)
            assert dataclasses.replace(found[label], seconds=0.0) == dataclasses.replace(
                alone, seconds=0.0
            )


def test_two_runs_in_one_folder_are_refused(tmp_path: Path):
    with exclusive(tmp_path), pytest.raises(RunError) as raised:
        condense(feature_set(12), quick(), out=tmp_path)
    assert raised.value.code == "locked"


def test_saved_subset_is_the_returned_one(tmp_path: Path):
    subset = condense(feature_set(12, 9), quick(), out=tmp_path)
    loaded = Subset.load(tmp_path)
    assert loaded.paths == subset.paths
    assert loaded.gain.tolist() == subset.gain.tolist()
    assert {key: loaded.provenance[key] for key in subset.provenance} == subset.provenance


@pytest.mark.parametrize("n_workers", [1, 2])
def test_error_of_a_class_names_it(n_workers: int):
    features = feature_set(12)
    values = features.features.copy()
    values[5] = 1e30
    with pytest.raises(InputError, match="class 'class 0': squared distances overflow"):
        condense(with_features(features, values), quick(), workers=n_workers)


def test_unexpected_error_of_a_class_names_it(monkeypatch: pytest.MonkeyPatch):
    def fail(_task: ClassTask) -> ClassSelection:
        raise MemoryError("no more")

    monkeypatch.setattr(workers, "select_class", fail)
    with pytest.raises(RunError, match="class 'class 0': MemoryError: no more") as raised:
        condense(feature_set(12), quick())
    assert raised.value.code == "class_failed"


def test_inaccurate_solution_is_a_warning_and_recorded(monkeypatch: pytest.MonkeyPatch):
    def inaccurate(task: ClassTask) -> ClassSelection:
        return dataclasses.replace(selection.select_class(task), has_converged=False)

    monkeypatch.setattr(workers, "select_class", inaccurate)
    with pytest.warns(ConvergenceWarning, match="class 'class 0'.*raise epsilon"):
        subset = condense(feature_set(12), quick())
    assert not records(subset)[0]["has_converged"]


def test_meaningless_solution_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(selection, "MAX_ROW_ERROR", -1.0)
    with pytest.raises(RunError, match="class 'class 0'.*raise epsilon") as raised:
        condense(feature_set(12), quick())
    assert raised.value.code == "not_converged"


@pytest.mark.parametrize(
    ("n_workers", "n_classes", "expected"),
    [
        (1, 9, (1, 1)),
        (4, 9, (4, 1)),
        (4, 4, (4, 1)),
        (7, 3, (3, 2)),
        (4, 1, (1, 4)),
        (4, 0, (1, 4)),
    ],
)
def test_a_few_classes_share_the_workers(n_workers: int, n_classes: int, expected: tuple[int, int]):
    assert workers.shared(n_workers, n_classes) == expected


def test_one_class_needs_no_workers_but_forks(monkeypatch: pytest.MonkeyPatch):
    def no_pool(*_args: int) -> None:
        raise AssertionError("a pool was started")

    monkeypatch.setattr(workers, "worker_pool", no_pool)
    features = feature_set(60)
    found = [condense(features, quick(), workers=n) for n in (1, 3)]
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found.append(condense(features, quick()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(n_threads)
    assert len({tuple(subset.paths) for subset in found}) == 1
    assert len({tuple(subset.gain) for subset in found}) == 1
