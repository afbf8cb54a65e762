import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cli_runner import Gadc
from cli_runner import gadc_fixture as gadc_fixture
from gadc.demo import digits
from gadc.errors import InputError, RunError
from gadc.experiment import stage_costs
from gadc.experiment.cells import Cell
from gadc.experiment.children import run_cells
from gadc.experiment.classifier import (
    ClassifierFiles,
    SmallNetwork,
    accuracy,
    read_pixels,
    train_classifier,
)
from gadc.experiment.cost import plan_experiment
from gadc.experiment.data import split_off
from gadc.experiment.judging import Judge
from gadc.experiment.protocol import (
    MAX_BYTES,
    DataPart,
    JudgePart,
    Length,
    is_protocol,
    load_protocol,
    shipped_protocols,
)
from gadc.experiment.runner import RESULT_NAME, run_experiment
from gadc.experiment.table import Row, aggregated, difference
from gadc.images.index import open_index
from gadc.report.comparison import read_comparison
from gadc.report.training import read_experiment
from gadc.sampling.config import SampleConfig
from gadc.training.config import TrainConfig
from gadc.training.record import RunRecord
from tiny_models import DINO_WIDTH, save_dinov2, save_t5
from waiting import wait_until

N_PER_CLASS_THERE = 24


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of zeros and ones, a folder each."""
    folder = tmp_path_factory.mktemp("pictures")
    images, labels = digits()
    for label in (0, 1):
        (folder / str(label)).mkdir()
        for row in np.flatnonzero(labels == label)[:N_PER_CLASS_THERE].tolist():
            Image.fromarray(images[row]).save(folder / str(label) / f"{row:04d}.png")
    return folder


def toy(pictures: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "toy",
        "data": {"source": str(pictures), "held_out": 0.5},
        "methods": ["random", "gadc"],
        "per_class": [3],
        "seeds": [0, 1],
        "models": ["SiT-T/4"],
        "lengths": [{"steps": 3}],
        "train": {
            "space": "pixel",
            "vae": None,
            "resolution_px": 8,
            "batch_size": 4,
            "flip": False,
            "ema_decays": [0.5],
        },
        "sample": {"n_samples": 40, "steps": 2},
        **changes,
    }


def written(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "protocol.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture(scope="module")
def finished(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("finished")
    protocol = load_protocol(written(folder, toy(pictures)))
    return folder / "out", run_experiment(protocol, folder / "out", device="cpu")


# The protocol


@pytest.mark.parametrize(
    ("place", "key", "nearest"),
    [
        ((), "method", "methods"),
        (("data",), "sources", "source"),
        (("judge",), "encode", "encoder"),
        (("train",), "batchsize", "batch_size"),
        (("sample",), "cfgscale", "cfg_scale"),
        (("select",), "capasity", "capacity"),
    ],
)
def test_protocol_with_unknown_key_names_the_nearest(
    place: tuple[str, ...], key: str, nearest: str, tmp_path: Path
) -> None:
    content = toy(tmp_path)
    part = content
    for name in place:
        part = part.setdefault(name, {})
    part[key] = 1
    with pytest.raises(InputError, match=f"{key} is not known; did you mean {nearest}") as caught:
        load_protocol(written(tmp_path, content))
    assert caught.value.code == "bad_protocol"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"methods": ["gadc"]}, "must have random"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "twice"),
        ({"per_class": ["10"]}, "per_class"),
        ({"lengths": [{"steps": 3, "epochs": 3}]}, "either steps or epochs"),
        ({"train": {"steps": 5}}, "lengths says it"),
        ({"sample": {"seed": 5}}, "seeds says it"),
        ({"data": {"source": "x"}}, "needs data.held_out"),
        ({"data": {"source": "x", "held_out": 1.5}}, "between 0 and 1"),
        ({"attach": {"caption": "a"}}, "needs text, visual or both"),
        ({"attach": {"text": "t5", "caption": "{rank}"}}, "must not tell"),
    ],
)
def test_protocol_that_contradicts_itself_is_refused(
    changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        load_protocol(written(tmp_path, toy(tmp_path, **changes)))
    assert caught.value.code == "bad_protocol"


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x\n",
        "name: a\nname: b\n",
        "!!python/object/apply:os.getcwd []",
        "[1, 2]",
        "name: [",
        "1: 2",
        "[" * 5000,
        "seeds: [" + "9" * 5000 + "]",
    ],
)
def test_yaml_beyond_plain_options_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_protocol(str(path))
    assert caught.value.code == "bad_protocol"


def test_command_names_the_keys_of_a_protocol(gadc: Gadc, tmp_path: Path) -> None:
    done = gadc("experiment", written(tmp_path, {"name": "toy"}), "--out", tmp_path / "out")
    assert (done.code, done.error_code) == (2, "bad_protocol")
    assert "; per_class is missing" in done.stderr


def test_protocol_of_another_size_or_place_is_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text("#" * (MAX_BYTES + 1))
    for given, code in ((large, "too_large"), (tmp_path / "none.yaml", "protocol_missing")):
        with pytest.raises(InputError) as caught:
            load_protocol(str(given))
        assert caught.value.code == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sample": {"sampler": "ddpm"}}, "unknown_sampler"),
        ({"train": {"space": "pixel", "vae": None, "resolution_px": 30}}, "patch_grid"),
        ({"train": {"space": "pixel", "vae": None, "drop_probability": 0.0}}, "guidance_range"),
        ({"seeds": [0, 10**30]}, "bad_config"),
        ({"lengths": [{"steps": 10**12}]}, "bad_protocol"),
    ],
)
def test_what_would_fail_after_hours_is_refused_at_once(
    changes: dict[str, Any], code: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        load_protocol(written(tmp_path, toy(tmp_path, **changes)))
    assert caught.value.code == code


def test_unknown_method_and_model_are_refused(tmp_path: Path) -> None:
    for changes, code in (
        ({"methods": ["random", "gadk"]}, "unknown_method"),
        ({"models": ["SiT-Q/2"]}, "unknown_model"),
    ):
        with pytest.raises(InputError) as caught:
            load_protocol(written(tmp_path, toy(tmp_path, **changes)))
        assert caught.value.code == code


@pytest.mark.parametrize("name", shipped_protocols())
def test_shipped_protocol_is_valid_and_found_by_name(name: str) -> None:
    assert load_protocol(name).name == name


def test_folder_of_that_name_comes_before_a_shipped_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_protocol("digits")
    (tmp_path / "digits").mkdir()
    assert not is_protocol("digits")  # of `gadc plan`, which takes images
    assert load_protocol("digits").name == "digits"  # of `gadc experiment`, which doesn't


def test_equal_epochs_give_steps_in_proportion_to_images() -> None:
    length = Length(epochs=12)
    assert [length.steps_of(n, 8) for n in (20, 40, 41)] == [30, 60, 62]  # rounded up
    assert Length(steps=7).steps_of(20, 8) == Length(steps=7).steps_of(40, 8) == 7


# Data and judge


def test_split_holds_out_the_share_of_each_class_in_any_order(pictures: Path) -> None:
    index = open_index(pictures)
    pool, others = split_off(index, 0.25)
    assert sorted([*pool, *others]) == list(range(len(index)))
    assert np.bincount(index.labels[others]).tolist() == [N_PER_CLASS_THERE // 4] * 2
    order = np.random.default_rng(0).permutation(len(index))
    shuffled = dataclasses.replace(
        index, ids=[index.ids[row] for row in order], labels=index.labels[order]
    )
    again = {shuffled.ids[row] for row in split_off(shuffled, 0.25)[1]}
    assert again == {index.ids[row] for row in others}


def test_classifier_learns_classes_and_repeats_itself(pictures: Path, tmp_path: Path) -> None:
    index = open_index(pictures)
    files = [ClassifierFiles(tmp_path / f"{n}.safetensors", ["0", "1"], 8) for n in range(2)]
    for each in files:
        train_classifier(index, each)
    assert files[0].weights.read_bytes() == files[1].weights.read_bytes()
    encoder = files[0].load()
    assert accuracy(encoder, index, 8) == 1.0
    pixels = read_pixels(index, 8)
    features, probabilities = encoder.encode(pixels)
    np.testing.assert_array_equal(encoder.classes_of(features), probabilities.argmax(1))
    np.testing.assert_allclose(features.mean(0), 0.0, atol=1e-4)  # float32 sums
    np.testing.assert_allclose(features.std(0, ddof=1), 1.0, atol=1e-4)


def test_classifier_features_do_not_depend_on_their_scale_in_the_network() -> None:
    torch.manual_seed(0)
    network = SmallNetwork(3)
    pixels = torch.randn(40, 3, 8, 8)
    network.take_units_from(pixels)
    before = network(pixels)[0]
    with torch.no_grad():
        network.features.weight.mul_(7.0)
        network.features.bias.mul_(7.0)
    network.take_units_from(torch.zeros_like(pixels))  # other units first
    network.centre.zero_()
    network.spread.fill_(1.0)
    network.take_units_from(pixels)
    torch.testing.assert_close(network(pixels)[0], before, rtol=1e-4, atol=1e-4)


# The table


def test_difference_is_taken_within_seeds() -> None:
    found = difference({0: 1.0, 1: 5.0, 2: None}, {0: 2.0, 1: 3.0, 3: 0.0}, "lower")
    assert found == {
        "mean": 0.5,
        "sd": pytest.approx(np.std([-1.0, 2.0], ddof=1)),
        "better": 1,
        "worse": 1,
        "n_seeds": 2,
    }
    assert difference({0: 1.0}, {1: 1.0}, "lower") is None


def test_table_has_mean_and_deviation_over_seeds() -> None:
    def row(method: str, seed: int, value: float | None) -> Row:
        score = {"name": "fid", "title": "FID", "better": "lower", "value": value, "note": ""}
        return Row(method, 10, seed, "inception", "held-out", [score])

    rows = [row("random", 0, 4.0), row("random", 1, 8.0), row("gadc", 0, 3.0), row("gadc", 1, 9.0)]
    by_method = {found["method"]: found for found in aggregated(rows)}
    assert by_method["random"]["mean"] == 6.0
    assert by_method["random"]["sd"] == pytest.approx(np.sqrt(8.0))
    assert by_method["random"]["difference"] is None
    assert by_method["gadc"]["difference"]["mean"] == 0.0
    assert by_method["gadc"]["difference"]["better"] == 1
    whole = aggregated([*rows[:3], row("gadc", 1, None)])
    assert {r["method"]: r["mean"] for r in whole}["gadc"] is None  # of one seed would mislead


# Cells


def a_cell(tmp_path: Path, **changes: Any) -> Cell:
    cell = Cell(
        title="gadc, seed 0",
        out=tmp_path,
        data=DataPart(source="digits", held_out=0.5),
        subset=tmp_path / "subset",
        subset_key="images",
        conditions=None,
        conditions_key=None,
        train=TrainConfig(space="pixel", vae=None, resolution_px=8, steps=5),
        sample=SampleConfig(n_samples=4),
        judge=Judge(JudgePart(), None, 8, {}, "cpu", key="judge"),
        device="cpu",
    )
    return dataclasses.replace(cell, **changes)


def test_stage_is_shared_by_all_that_ask_for_the_same(tmp_path: Path) -> None:
    cell = a_cell(tmp_path)
    other_method = a_cell(tmp_path, title="herding, seed 0", subset=tmp_path / "other")
    assert other_method.scores_folder == cell.scores_folder  # it selected the same images
    judge = dataclasses.replace(cell.judge, key="another")
    judged_again = a_cell(tmp_path, judge=judge)
    assert judged_again.samples_folder == cell.samples_folder
    assert judged_again.scores_folder != cell.scores_folder
    longer = a_cell(tmp_path, train=cell.train.model_copy(update={"steps": 6}))
    for changed in (a_cell(tmp_path, subset_key="others"), longer):
        assert changed.run_folder != cell.run_folder
        assert changed.samples_folder != cell.samples_folder


def test_error_in_a_process_names_the_cell(tmp_path: Path) -> None:
    cell = a_cell(tmp_path)
    with pytest.raises(InputError, match="gadc, seed 0: there is no") as caught:
        run_cells([cell, cell], lambda _cell: None, n_workers=2)
    assert caught.value.code == "subset_missing"


def test_bug_in_a_process_is_told_from_a_killed_one(tmp_path: Path) -> None:
    cell = a_cell(tmp_path, data=None)
    with pytest.raises(RunError, match="gadc, seed 0: AttributeError") as caught:
        run_cells([cell], lambda _cell: None, n_workers=1)
    assert caught.value.code == "task_failed"


# The whole


def test_toy_protocol_runs_from_images_to_a_table(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, result = finished
    numbers = {(r["method"], r["measure"]): r for r in result["table"]}
    for measure in ("frechet", "kid", "near-copies", "closer-to-training", "class-agreement"):
        for method in ("random", "gadc"):
            assert numbers[method, measure]["n_seeds"] == 2
            assert np.isfinite(numbers[method, measure]["mean"])
    assert numbers["gadc", "frechet"]["difference"]["n_seeds"] == 2
    # Real images are nearer to other real images than those of a model after three steps.
    assert numbers["full", "frechet"]["mean"] < numbers["random", "frechet"]["mean"]
    found = read_comparison(out / "comparison.parquet")
    assert [method["name"] for method in found.methods] == ["gadc", "random", "full"]
    assert "frechet" in [measure["name"] for measure in found.measures]
    trainings, n_gone = read_experiment(out)
    assert n_gone == 0
    assert [run.name for run in trainings] == [
        f"{title} · 3 per class · seed {seed}" for seed in (0, 1) for title in ("gadc", "Random")
    ]
    for name in ("table.md", "samples.png", RESULT_NAME):
        assert (out / name).stat().st_size > 0


def test_only_subsets_differ_between_methods(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    alike = ("steps", "train_sha256", "sample_sha256", "is_conditioned", "judge_sha256")
    for seed in (0, 1):
        runs = [run for run in result["runs"] if run["seed"] == seed]
        assert len(runs) == 2
        for name in alike:
            assert len({run[name] for run in runs}) == 1, name
        assert len({run["subset_sha256"] for run in runs}) == 2
    # The generator of a seed is the same, so is that of gadc's subset; training is another.
    gadc = [run for run in result["runs"] if run["method"] == "gadc"]
    assert gadc[0]["subset_sha256"] == gadc[1]["subset_sha256"]
    assert gadc[0]["run"] != gadc[1]["run"]


def test_second_run_does_nothing_and_finds_the_same(
    finished: tuple[Path, dict[str, Any]], pictures: Path, tmp_path: Path
) -> None:
    out, result = finished
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    again = run_experiment(load_protocol(written(tmp_path, toy(pictures))), out, device="cpu")
    assert again["counts"]["run"] == 0
    assert again["table"] == result["table"]
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == stamps


def test_killed_run_goes_on_to_the_same_table(
    finished: tuple[Path, dict[str, Any]], pictures: Path, tmp_path: Path
) -> None:
    given, out = written(tmp_path, toy(pictures)), tmp_path / "out"
    command = [sys.executable, "-m", "gadc.cli", "-q", "experiment", given, "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--device", "cpu"], start_new_session=True, stdout=subprocess.DEVNULL
    )
    # Until it is between two stages of a cell.
    wait_until(lambda: list(out.glob("samples/*/done.json")), while_running=process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / RESULT_NAME).exists()
    result = run_experiment(load_protocol(given), out, device="cpu", n_workers=2, wait_seconds=30.0)
    assert result["table"] == finished[1]["table"]


def test_corrupt_numbers_are_computed_again(
    finished: tuple[Path, dict[str, Any]], pictures: Path, tmp_path: Path
) -> None:
    out, result = finished
    path = sorted(out.glob("scores/*/cell.json"))[0]
    path.write_text(path.read_text().replace('"value": ', '"value": 1'))
    again = run_experiment(load_protocol(written(tmp_path, toy(pictures))), out, device="cpu")
    assert again["counts"]["run"] == 1
    assert again["table"] == result["table"]


def test_damaged_stages_are_done_again(
    finished: tuple[Path, dict[str, Any]], pictures: Path, tmp_path: Path
) -> None:
    out, result = tmp_path / "out", finished[1]
    shutil.copytree(finished[0], out)
    for path in out.glob("scores/*/cell.json"):
        path.unlink()
    gone, cut, *_ = (
        sorted((folder / "images").iterdir())[3] for folder in (out / "samples").iterdir()
    )
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:60])
    for name in ("judge/*/classifier.safetensors", "subsets/*/subset.parquet"):
        damaged = next(out.glob(name))
        content = bytearray(damaged.read_bytes())
        content[-9] ^= 0xFF
        damaged.write_bytes(content)
    given = written(tmp_path, toy(pictures))
    assert run_experiment(load_protocol(given), out, device="cpu")["table"] == result["table"]
    for folder in (out / "samples").iterdir():  # each seen only in the sheet of the finished run
        (folder / "samples.json").write_text("{")
    with pytest.raises(RunError, match="run the same command again") as caught:
        run_experiment(load_protocol(given), out, device="cpu")
    assert caught.value.code == "corrupt"


def test_all_methods_are_trained_with_their_conditions(pictures: Path, tmp_path: Path) -> None:
    for name, save in (("t5", save_t5), ("dino", save_dinov2)):
        (tmp_path / name).mkdir()
        save(tmp_path / name)
    attached = {"text": str(tmp_path / "t5"), "text_tokens": 6, "visual": str(tmp_path / "dino")}
    content = toy(pictures, attach=attached, seeds=[0])
    protocol = load_protocol(written(tmp_path, content))
    result = run_experiment(protocol, tmp_path / "out", device="cpu")
    assert len(result["runs"]) == 2
    for run in result["runs"]:
        assert run["is_conditioned"]
        record = RunRecord.load(tmp_path / "out" / "runs" / run["run"])
        assert record.shape.n_text_tokens == 6
        assert record.shape.projection_width == DINO_WIDTH
        assert record.conditions is not None


def test_plan_counts_runs_and_steps(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_now(*_arguments: Any, **_options: Any) -> None:
        raise InputError("unknown_encoder", "not in this test")

    monkeypatch.setattr("gadc.experiment.cost.measure_selection", not_now)
    monkeypatch.setattr("gadc.experiment.cost.measure_judging", not_now)
    content = toy(pictures, per_class=[3, 6], lengths=[{"steps": 3}, {"epochs": 10}])
    plan = plan_experiment(load_protocol(written(tmp_path, content)), device="cpu", seconds=1.0)
    assert plan["n_runs"] == 2 * 2 * 2 * 2  # methods, seeds, budgets, lengths
    assert plan["n_selections"] == 2 * (2 + 1)  # gadc draws nothing
    assert [part["steps"] for part in plan["parts"]] == [3, 3, 15, 30]
    assert plan["n_steps"] == (3 + 3 + 15 + 30) * 4


def test_plan_measures_every_stage_and_counts_what_is_attached(
    pictures: Path, tmp_path: Path
) -> None:
    content = toy(pictures, attach={"text": "a T5", "visual": "a DINOv2"})
    plan = plan_experiment(load_protocol(written(tmp_path, content)), device="cpu", seconds=1.0)
    seconds = {stage["stage"]: stage["seconds"] for stage in plan["stages"]}
    assert list(seconds) == [
        *("features and checks", "judge", "selection", "attaching"),
        *("training", "sampling", "judging"),
    ]
    assert seconds.pop("attaching") is None
    assert min(seconds.values()) > 0
    assert plan["seconds"] == pytest.approx(sum(seconds.values()))
    (counted,) = [s["basis"] for s in plan["stages"] if s["stage"] == "attaching"]
    # Three subsets (gadc's, two random ones) of two classes, three images of each.
    assert "6 captions and 18 images at most" in counted
    assert plan["remarks"] == []


def test_plan_says_what_it_can_not_measure(pictures: Path, tmp_path: Path) -> None:
    judge = {"encoder": "cifar10-resnet56", "weights": str(tmp_path / "none.pt")}
    content = toy(pictures, judge=judge, methods=["random"], lengths=[{"epochs": 2}])
    plan = plan_experiment(load_protocol(written(tmp_path, content)), device="cpu", seconds=1.0)
    seconds = {stage["stage"]: stage["seconds"] for stage in plan["stages"]}
    assert [name for name, value in seconds.items() if value is None] == ["judge", "judging"]
    assert plan["seconds"] > 0
    assert "judging can't be measured" in plan["remarks"][0]
    content["data"]["source"] = str(tmp_path / "nowhere")
    plan = plan_experiment(load_protocol(written(tmp_path, content)), device="cpu")
    assert plan["seconds"] is None
    assert "nowhere" in plan["remarks"][0]


def test_part_that_is_measured_has_whole_classes_unless_they_are_large() -> None:
    few = stage_costs._part_rows(np.repeat([0, 1], 400), 800)
    assert len(few) == 800
    labels = np.repeat(np.arange(50), 1_000)
    rows = stage_costs._part_rows(labels, len(labels))
    assert np.unique(labels[rows], return_counts=True)[1].tolist() == [1_000] * 3
    labels = np.repeat([0, 1, 2], 9_000)
    rows = stage_costs._part_rows(labels, len(labels))
    assert np.unique(labels[rows], return_counts=True)[1].tolist() == [1_500] * 2
    assert len(stage_costs._part_rows(None, 10_000)) <= stage_costs.PART_IMAGES


@pytest.mark.slow
def test_short_protocol_of_digits_makes_digits(tmp_path: Path) -> None:
    result = run_experiment(load_protocol("digits-short"), tmp_path, device="cpu", n_workers=2)
    assert result["judge"]["accuracy_held_out"] > 0.9
    agreement = {
        row["method"]: row["mean"] for row in result["table"] if row["measure"] == "class-agreement"
    }
    # Chance is 0.1.
    assert min(agreement["random"], agreement["gadc"]) > 0.3
