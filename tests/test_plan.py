"""`gadc plan`: its models against closed forms, its bytes against files, and what it prints."""

import dataclasses
import inspect
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from cli_runner import Gadc, gadc_fixture, snapshot  # noqa: F401 - a fixture
from feature_sets import feature_set, quick
from features_helpers import ColourEncoder, tiny_pixels, write_images
from gadc.cli.plan import plan as plan_command
from gadc.cli.selection import select as select_command
from gadc.errors import InputError
from gadc.features.extract import extract
from gadc.features.tensors import TensorWriter, tensor_file_bytes
from gadc.images.index import open_index
from gadc.per_class.selection import ClassSettings, ClassTask
from gadc.runs import prepared_part
from gadc.runs.cost_model import (
    PRIOR_SHARE,
    ClassSize,
    MeasuredClass,
    fit_time_model,
    line_through,
    makespan,
)
from gadc.runs.feature_trial import sampled, stand_in, try_features
from gadc.runs.inputs import ImageSettings
from gadc.runs.planned_data import planned_pool
from gadc.runs.prepared_part import prepare_part, spread
from gadc.runs.selection import Request
from gadc.runs.selection_trial import part_of, try_selection

Usage = namedtuple("Usage", "total used free")
QUICK = ("--patience", 0, "--start", "medoids", "--seconds", 0.01)


def measured(n_images: int, seconds: float, *, is_whole: bool = True) -> MeasuredClass:
    return MeasuredClass(ClassSize(n_images, n_images, 10), seconds, is_whole)


@pytest.mark.parametrize("n_measured", [1, 3])
def test_classes_of_one_size_take_their_mean(n_measured: int) -> None:
    seconds = [2.0, 5.0, 11.0][:n_measured]
    model = fit_time_model([measured(1000, each) for each in seconds])
    assert model.seconds(ClassSize(1000, 1000, 10)) == pytest.approx(np.mean(seconds))


@pytest.mark.parametrize("fixed", [0.0, 0.1, 2.0])
def test_fixed_part_and_slope_are_found_from_sizes_far_apart(fixed: float) -> None:
    sizes = [ClassSize(n, n, 10) for n in (50, 500, 5000)]
    model = fit_time_model([MeasuredClass(size, fixed + 1e-8 * size.work) for size in sizes])
    assert model.seconds(ClassSize(5000, 5000, 20)) == pytest.approx(fixed + 5.0, rel=0.05)
    small = model.seconds(ClassSize(500, 500, 10))
    assert small == pytest.approx(fixed + 0.025, rel=0.2)


def test_times_of_one_size_say_nothing_of_the_fixed_part() -> None:
    model = fit_time_model([measured(1000, 4.0), measured(1000, 4.0)])
    assert model.fixed == pytest.approx(PRIOR_SHARE * 4.0)
    assert model.seconds(ClassSize(2000, 1000, 10)) == pytest.approx(4.0 * (2.0 - PRIOR_SHARE))


def test_time_is_extrapolated_from_a_quarter_and_a_half_of_a_class() -> None:
    # Of CIFAR-10's classes, 50 kept, 1,250 and 2,500 of 5,000 images took so long, and all 54 s.
    parts = [measured(1250, 10.7, is_whole=False)] * 2 + [measured(2500, 19.4, is_whole=False)] * 4
    assert fit_time_model(parts).seconds(ClassSize(5000, 5000, 10)) == pytest.approx(54, rel=0.1)


def test_parts_of_a_class_tell_the_growth_and_whole_classes_the_level() -> None:
    parts = [measured(250, 1.0, is_whole=False), measured(500, 100.0, is_whole=False)]
    model = fit_time_model([*parts, measured(1000, 7.0)])
    assert model.seconds(ClassSize(1000, 1000, 10)) == pytest.approx(7.0)


def test_without_a_whole_class_the_largest_part_tells_the_level() -> None:
    model = fit_time_model([measured(250, 1.0, is_whole=False), measured(500, 4.0, is_whole=False)])
    assert model.seconds(ClassSize(500, 500, 10)) == pytest.approx(4.0)
    assert model.seconds(ClassSize(1000, 1000, 10)) > 4.0


def test_a_class_that_gives_nothing_takes_no_time() -> None:
    assert fit_time_model([measured(250, 1.0)]).seconds(ClassSize(100, 100, 0)) == 0.0


@pytest.mark.parametrize(
    ("seconds", "n_workers", "expected"),
    [([3.0, 1.0, 1.0, 1.0], 2, 3.0), ([1.0, 1.0, 3.0], 2, 4.0), ([2.0], 4, 2.0), ([1.5] * 4, 1, 6)],
)
def test_makespan_by_hand(seconds: list[float], n_workers: int, expected: float) -> None:
    assert makespan(seconds, n_workers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [
        ((10, 2.0), (20, 3.0), 4.0),  # 1 s to begin, 0.1 s each
        ((10, 3.0), (20, 3.0), 3.0),  # nothing but the beginning
        ((10, 4.0), (20, 3.0), 3.0),  # noise
        ((10, 0.1), (20, 3.0), 4.5),  # nothing takes less than no time to begin
    ],
)
def test_line_by_hand(small, large, expected: float) -> None:
    assert line_through(*small, *large, 30) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100])
def test_spread_begins_with_the_first_and_leaves_none_out(n: int) -> None:
    order = spread(list(range(n)))
    assert order[0] == 0
    assert sorted(order) == list(range(n))


def test_first_few_of_a_spread_lie_in_all_parts() -> None:
    assert {place // 25 for place in spread(list(range(100)))[:5]} == {0, 1, 2, 3}


def test_bytes_of_a_tensor_file_are_those_written(tmp_path: Path) -> None:
    shapes = {"labels": ((7,), np.dtype("<i8")), "features": ((7, 3), np.dtype("<f4"))}
    with TensorWriter(tmp_path / "x", shapes, {"class_names": '["ä"]'}) as file:
        file.append("labels", np.arange(7))
        file.append("features", np.ones((7, 3)))
    size = (tmp_path / "x").stat().st_size
    assert tensor_file_bytes(shapes, {"class_names": '["ä"]'}) == size


@pytest.mark.parametrize("make_encoder", [ColourEncoder, tiny_pixels])
def test_bytes_of_features_are_known_from_a_sample(tmp_path: Path, make_encoder) -> None:
    index = open_index(write_images(tmp_path / "images", n_per_class=60))
    encoder = make_encoder()
    trial = try_features(index, encoder, ImageSettings(), seconds=0.01)
    extract(index, encoder, tmp_path / "out")
    tensors = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    items = trial.disk_bytes - tensors
    real_items = (tmp_path / "out" / "items.parquet").stat().st_size
    assert trial.n_sampled < len(index)
    # The tensors are exact; the table of items compresses better the longer it is.
    assert real_items <= items <= 2 * real_items
    assert trial.peak_disk_bytes > trial.disk_bytes


@pytest.mark.parametrize(("n_images", "n_wanted"), [(5, 64), (64, 64), (100, 64), (10_000, 64)])
def test_sampled_images_lie_in_runs_from_the_first_to_the_last(n_images, n_wanted) -> None:
    positions = sampled(n_images, n_wanted)
    assert positions[0] == 0
    assert positions[-1] == n_images - 1
    assert len(positions) == len(set(positions)) == min(n_images, n_wanted)
    assert np.sum(np.diff(positions) > 1) <= 7


def test_stand_in_stays_within_its_class() -> None:
    sample = feature_set(40, 40)
    labels = np.repeat([1, 0, 1], 30)
    made = stand_in(sample, labels, 90)
    centres = [sample.features[sample.labels == label].mean(0) for label in (0, 1)]
    distances = [np.linalg.norm(made.features - centre, axis=1) for centre in centres]
    assert np.mean((distances[1] < distances[0]) == (labels == 1)) > 0.95
    assert made.n_images == made.n_scanned == 90


def test_part_of_a_class_is_a_quarter_and_none_where_that_is_too_few() -> None:
    features = np.zeros((41, 3), dtype=np.float32)
    task = ClassTask("x", features, 5, ClassSettings(), keep=(40,))
    part = part_of(task, 4)
    assert part is not None
    assert len(part.features) == 11
    assert part.keep == ()
    assert part_of(ClassTask("x", features, 6, ClassSettings()), 4) is None


@pytest.fixture
def features(tmp_path: Path) -> Path:
    sizes = [30, 12, 20, 8]
    numbers = np.random.default_rng(5)
    labels = np.repeat(np.arange(4), sizes)
    values = numbers.normal(labels[:, None], 1.0, (len(labels), 4)).astype(np.float32)
    path = tmp_path / "features.safetensors"
    safetensors.numpy.save_file({"features": values, "labels": labels}, path)
    return path


@pytest.mark.parametrize(
    "options",
    [{"per_class": 10}, {"fraction": 0.2}, {"budget": 13, "allocate": "sqrt"}, {"per_class": 3}],
)
def test_sizes_of_all_classes_are_known_from_a_part(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options
) -> None:
    request = Request(features, tmp_path / "out", quick(**{"per_class": None, **options}))
    pool = planned_pool(request, seconds=1.0)
    whole = prepare_part(request, pool, None)
    monkeypatch.setattr(prepared_part, "TRIAL_BYTES", 4 * 4 * 45)
    part = prepare_part(request, pool, None)
    assert (whole.is_whole, part.is_whole) == (True, False)
    assert part.sizes == whole.sizes
    assert part.n_rows == 42  # the largest class and another
    for label in part.tried_labels():
        task, same = part.task(label), whole.task(label)
        assert task.n_selected == same.n_selected
        assert task.settings == same.settings
        np.testing.assert_array_equal(task.features, same.features)


def test_clusters_of_a_part_stand_for_all(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = safetensors.numpy.load_file(features)["features"]
    np.save(tmp_path / "unlabelled.npy", values)
    request = Request(tmp_path / "unlabelled.npy", tmp_path, quick(per_class=2, clusters=4))
    monkeypatch.setattr(prepared_part, "TRIAL_BYTES", 4 * 4 * 35)
    part = prepare_part(request, planned_pool(request, seconds=1.0), None)
    assert part.n_rows == 35
    assert len(part.sizes) == 4
    assert all(size.n_selected == 2 for size in part.sizes)


def test_plan_of_features_says_what_a_run_needs_and_writes_nothing(
    gadc: Gadc, features: Path, tmp_path: Path
) -> None:
    before = snapshot(tmp_path)
    done = gadc("plan", features, "--per-class", 3, "--out", tmp_path / "out", *QUICK, "--json")
    assert done.code == 0, done.stderr
    assert snapshot(tmp_path) == before
    found = done.json
    assert (found["n_images"], found["n_classes"], found["n_selected"]) == (70, 4, 12)
    assert found["workers"] == 1
    times = found["time"]
    steps = ("load_seconds", "features_seconds", "prepare_seconds", "select_seconds")
    assert times["total_seconds"] == pytest.approx(sum(times[step] for step in steps))
    assert times["features_seconds"] == 0.0
    assert found["measured"]["images"] is None
    assert found["measured"]["classes"][0]["n_images"] == 30  # the largest
    assert found["memory"]["needed_bytes"] >= found["memory"]["driver_bytes"] > 0
    assert found["disk"]["needed_bytes"] == found["disk"]["subset_bytes"] > 0


def test_plan_of_images_measures_a_sample(
    gadc: Gadc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gadc.runs.inputs.load_encoder", lambda *_args, **_rest: tiny_pixels())
    images = write_images(tmp_path / "images", n_per_class=30)
    before = snapshot(tmp_path)
    done = gadc("plan", images, "--per-class", 3, "--out", tmp_path / "out", "--workers", 2, *QUICK)
    assert done.code == 0, done.stderr
    assert snapshot(tmp_path) == before
    assert "of 90 images" in done.stdout
    assert "2 processes" in done.stdout
    assert "made up in the likeness" in done.stdout


def test_everything_measured_is_said(gadc: Gadc, features: Path) -> None:
    done = gadc("plan", features, "--per-class", 2, *QUICK[:-1], 60, "--json")
    assert done.json["measured"]["everything"]
    assert any("every class was measured" in remark for remark in done.json["remarks"])


def test_too_small_a_disk_is_an_error(
    gadc: Gadc, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1000, 1000, 0))
    done = gadc("plan", features, "--per-class", 3, "--out", tmp_path / "out", *QUICK)
    assert done.code == 1
    assert done.error_code == "no_space"
    assert str(tmp_path) in done.stderr


def test_too_little_memory_is_a_remark(
    gadc: Gadc, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gadc.runs.plan.available_memory_bytes", lambda: 1000)
    done = gadc("plan", features, "--per-class", 3, *QUICK, "--json")
    assert any("memory may run out" in remark for remark in done.json["remarks"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("nothing", "--per-class", 3), "missing_source"),
        (("features.safetensors",), "budget_choice"),
        (("features.safetensors", "--per-class", 3, "--nested"), "bad_config"),
        (("features.safetensors", "--budget", 1000), "budget_range"),
        (("features.safetensors", "--per-class", 3, "--seconds", 0), "bad_argument"),
        (("features.safetensors", "--per-class", 3, "--nested-sizes", "a"), "nested_sizes"),
    ],
)
def test_plan_refuses_what_select_refuses(
    gadc: Gadc,
    features: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    code: str,
) -> None:
    monkeypatch.chdir(features.parent)
    done = gadc("plan", *arguments)
    assert done.code == 2
    assert done.error_code == code


def test_plan_takes_the_options_of_select() -> None:
    of_plan = inspect.signature(plan_command).parameters
    of_select = inspect.signature(select_command).parameters
    assert set(of_select) - set(of_plan) == {"wait", "null", "strict_exit"}
    assert set(of_plan) - set(of_select) == {"seconds"}
    shared = (set(of_plan) & set(of_select)) - {"out", "context"}
    assert {name: of_plan[name].default for name in shared} == {
        name: of_select[name].default for name in shared
    }


def task_of(n_images: int, n_selected: int = 2) -> ClassTask:
    features = np.random.default_rng(n_images).normal(size=(n_images, 3)).astype(np.float32)
    return ClassTask("x", features, n_selected, ClassSettings(start="medoids", patience=0))


def test_slow_classes_are_tried_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gadc.runs.selection_trial.LARGE_CLASS", 40)
    others = [task_of(40), task_of(44), task_of(36), task_of(30)]
    trial = try_selection(task_of(48), iter(others), n_workers=1, seconds=1e-9)
    assert [entry.size.n_images for entry in trial.measured] == [12, 24, 20, 22, 18]
    assert not any(entry.is_whole for entry in trial.measured)
    assert trial.worker_bytes >= trial.idle_worker_bytes > 0


def test_four_classes_are_tried_whatever_the_time() -> None:
    others = [task_of(12), task_of(14), task_of(10), task_of(9)]
    trial = try_selection(task_of(16), iter(others), n_workers=1, seconds=1e-9)
    assert [entry.size.n_images for entry in trial.measured] == [16, 12, 14, 10]
    assert all(entry.is_whole for entry in trial.measured)


def test_error_of_a_tried_class_is_raised() -> None:
    broken = dataclasses.replace(task_of(16), keep=(0, 1, 2))
    with pytest.raises(InputError) as raised:
        try_selection(broken, iter([]), n_workers=1, seconds=1.0)
    assert raised.value.code == "n_selected_range"
