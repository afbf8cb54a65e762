"""Sampling: guidance, generators of images, labels, files, and going on."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cli_runner import Gadc, snapshot
from cli_runner import gadc_fixture as gadc_fixture
from gadc.errors import InputError, RunError
from gadc.sampling.config import SAMPLERS, SampleConfig
from gadc.sampling.generate import sample
from gadc.sampling.guidance import Guidance, guided
from gadc.sampling.labels import class_numbers, image_labels
from gadc.sampling.model import SamplingModel
from gadc.sampling.noise import ImageNoise
from gadc.sampling.pictures import grid
from gadc.sampling.preview import GridWriter
from gadc.training.checkpoint import checkpoint_path
from gadc.training.journal import LOSSES_NAME, read_losses
from gadc.training.loop import train
from gadc.training.record import RunRecord
from gadc.training.tensor_files import load_tensors
from training_runs import save_tiny_vae, tiny_conditions, tiny_config, tiny_images, write_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train a model of each family for a few large steps, so that nothing in it is zero."""
    root = tmp_path_factory.mktemp("runs")
    images = tiny_images(root / "images")
    conditions = tiny_conditions(images, n_tokens=4)
    for name, model in (("flow", "SiT-T/4"), ("ddpm", "DiT-T/4")):
        config = tiny_config(model=model, steps=6, checkpoint_every=6)
        train(images, config, root / name, conditions=conditions, device="cpu")
    config = tiny_config(steps=6, checkpoint_every=6, conditional=False)
    train(images, config, root / "unconditional", device="cpu")
    return {name: root / name for name in ("flow", "ddpm", "unconditional")}


def load(run: Path) -> SamplingModel:
    return SamplingModel.load(run, ema=0.5, device=CPU)


def sampling(**changes: Any) -> SampleConfig:
    return SampleConfig(**{"n_samples": 5, "steps": 4, "ema": 0.5, **changes})


def two_part(x: torch.Tensor, _time: float, with_null: bool) -> torch.Tensor:
    """Predict 3 for the conditional half and 1 for the other, in 2 + 2 channels."""
    values = torch.full((len(x), 4, 1, 1), 3.0)
    if with_null:
        values[len(x) // 2 :] = 1.0
    return values


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (1.0, 3.0), (1.5, 4.0), (3.0, 7.0)])
def test_guidance_extrapolates(scale: float, expected: float) -> None:
    predict = guided(two_part, Guidance(scale), n_channels=2)
    found = predict(torch.zeros(2, 2, 1, 1), 500.0)
    assert found[:, :2].unique().tolist() == [expected]
    assert found[:, 2:].unique().tolist() == [3.0]  # the variance is the conditional model's


def test_guidance_keeps_to_interval_and_channels() -> None:
    predict = guided(two_part, Guidance(2.0, (0.2, 0.7), channels=1), n_channels=2)
    x = torch.zeros(1, 2, 1, 1)
    assert [predict(x, time)[0, 0].item() for time in (100.0, 200.0, 700.0, 701.0)] == [3, 5, 5, 3]
    assert predict(x, 500.0)[0, 1].item() == 3.0


@pytest.mark.parametrize("name", ["flow", "ddpm"])
def test_guidance_at_scale_one_is_the_conditional_model(runs: dict[str, Path], name: str) -> None:
    model = load(runs[name])
    labels = np.array([0, 2])
    plain = model.sample([0, 1], labels, sampling(cfg_scale=1.0))
    # Nearly one goes the long way, over both predictions.
    nearly = model.sample([0, 1], labels, sampling(cfg_scale=1.0 + 1e-6))
    other = model.sample([0, 1], labels, sampling(cfg_scale=8.0))
    assert np.abs(plain.astype(int) - nearly).max() <= 1
    assert np.abs(plain.astype(int) - other).max() > 1


def test_null_is_class_and_text_at_once(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(runs["flow"])
    seen = []
    forward = type(model.network).forward

    def spy(self, x, times, labels=None, text=None):  # type: ignore[no-untyped-def]
        seen.append((labels, text))
        return forward(self, x, times, labels, text)

    monkeypatch.setattr(type(model.network), "forward", spy)
    model.sample([0, 1], np.array([1, 2]), sampling(steps=1, cfg_scale=2.0))
    (labels, text), *_ = seen
    assert labels.tolist() == [1, 2, 3, 3]
    assert text.any(dim=(1, 2)).tolist() == [True, True, False, False]
    assert model.texts is not None
    assert torch.equal(text[0], model.texts.text[1])


@pytest.mark.parametrize(
    "changes",
    [{"cfg_scale": -1.0}, {"interval": (0.5, 0.2)}, {"interval": (0.0, 1.5)}, {"channels": 0}],
)
def test_bad_guidance_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        sampling(**changes)
    assert caught.value.code == "guidance_range"


def test_noise_belongs_to_the_image() -> None:
    together = ImageNoise(7, range(5), (2, 3, 3))
    first, second = together.normal(), together.normal()
    alone = ImageNoise(7, [3], (2, 3, 3))
    assert torch.equal(alone.normal()[0], first[3])
    assert torch.equal(alone.normal()[0], second[3])
    assert not torch.equal(ImageNoise(8, [3], (2, 3, 3)).normal()[0], first[3])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_image_does_not_depend_on_its_batch(runs: dict[str, Path], name: str) -> None:
    model = load(runs["flow" if SAMPLERS[name].family == "SiT" else "ddpm"])
    config, labels = sampling(sampler=name), np.array([0, 1, 2, 0, 1])
    together = model.sample(range(5), labels, config)
    alone = np.concatenate([model.sample([i], labels[i : i + 1], config) for i in range(5)])
    pairs = np.concatenate([model.sample([3, 1], labels[[3, 1]], config)])
    assert np.abs(together.astype(int) - alone).max() <= 1  # sums are rounded by batch
    assert np.abs(together[[3, 1]].astype(int) - pairs).max() <= 1
    assert len(np.unique(together.reshape(5, -1), axis=0)) == 5


def test_labels_are_balanced_and_independent_of_the_number() -> None:
    classes = np.arange(10)
    many = image_labels(5000, classes, labelling="balanced", seed=1)
    assert np.bincount(many).tolist() == [500] * 10
    assert np.array_equal(many[:37], image_labels(37, classes, labelling="balanced", seed=1))
    assert not np.array_equal(many[:10], many[10:20])
    drawn = image_labels(5000, classes, labelling="random", seed=1)
    counts = np.bincount(drawn, minlength=10)
    assert len(set(counts.tolist())) > 1
    assert np.abs(counts - 500).max() < 4.5 * (5000 * 0.09) ** 0.5


def test_unknown_class_is_an_error() -> None:
    assert class_numbers(["a", "b", "c"], ["c", "a"]).tolist() == [2, 0]
    with pytest.raises(InputError) as caught:
        class_numbers(["a", "b"], ["z"])
    assert caught.value.code == "unknown_classes"


def test_sampling_goes_on_and_mends(runs: dict[str, Path], tmp_path: Path) -> None:
    whole, mended = tmp_path / "whole", tmp_path / "mended"
    sample(runs["flow"], sampling(), whole, batch_size=2)
    sample(runs["flow"], sampling(), mended, batch_size=2)
    (mended / "images" / "000003.png").unlink()
    torn = mended / "images" / "000001.png"
    torn.write_bytes(torn.read_bytes()[:-20])
    result = sample(runs["flow"], sampling(), mended, batch_size=2)
    assert (result.n_made, result.is_complete) == (2, True)
    assert sorted(snapshot(whole)) == sorted(snapshot(mended))
    for number in range(5):
        first, second = (
            np.asarray(Image.open(folder / "images" / f"{number:06d}.png")).astype(int)
            for folder in (whole, mended)
        )
        assert np.abs(first - second).max() <= 1


def test_processes_share_the_images(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(runs["flow"], sampling(), tmp_path / "one")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, n_made in (("0", 3), ("1", 2)):
        monkeypatch.setenv("RANK", rank)
        result = sample(runs["flow"], sampling(), tmp_path / "two")
        assert result.n_made == n_made
    assert result.is_complete
    for number in range(5):
        first, second = (
            np.asarray(Image.open(tmp_path / name / "images" / f"{number:06d}.png")).astype(int)
            for name in ("one", "two")
        )
        assert np.abs(first - second).max() <= 1


def test_batch_is_halved_when_memory_runs_out(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = SamplingModel.sample
    sizes = []

    def small(self: SamplingModel, numbers: list[int], *rest: Any) -> Any:
        sizes.append(len(numbers))
        if len(numbers) > 2:
            raise torch.cuda.OutOfMemoryError
        return make(self, numbers, *rest)

    monkeypatch.setattr(SamplingModel, "sample", small)
    result = sample(runs["flow"], sampling(), tmp_path / "out", batch_size=5)
    assert (result.n_made, result.is_complete) == (5, True)
    assert sizes == [5, 2, 2, 1]


def test_npz_is_what_adm_reads(runs: dict[str, Path], tmp_path: Path) -> None:
    result = sample(runs["ddpm"], sampling(), tmp_path / "out", form="npz")
    with np.load(result.images, allow_pickle=False) as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.shape == (5, 8, 8, 3)
    assert images.dtype == np.uint8
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert labels.tolist() == record["labels"]
    picture = np.asarray(Image.open(tmp_path / "out" / "images" / "000002.png"))
    assert np.array_equal(images[2], picture)


def test_other_samples_are_not_overwritten(runs: dict[str, Path], tmp_path: Path) -> None:
    sample(runs["flow"], sampling(), tmp_path / "out")
    for changes in ({"seed": 1}, {"cfg_scale": 2.0}, {"n_samples": 6}):
        with pytest.raises(InputError) as caught:
            sample(runs["flow"], sampling(**changes), tmp_path / "out")
        assert caught.value.code == "output_in_use"


def test_samples_of_a_run_with_other_texts_are_not_mixed(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    sample(runs["flow"], sampling(), tmp_path / "out")
    other = shutil.copytree(runs["flow"], tmp_path / "other")
    dataclasses.replace(RunRecord.load(other), conditions="0" * 64).save(other)
    with pytest.raises(InputError) as caught:
        sample(other, sampling(), tmp_path / "out")
    assert caught.value.code == "output_in_use"


@pytest.mark.parametrize("name", ["images/000000.png", "samples.npz", "cat/1.png"])
def test_images_of_others_are_not_taken_for_samples(
    runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(theirs, format="PNG")
    before = theirs.read_bytes()
    with pytest.raises(InputError) as caught:
        sample(runs["flow"], sampling(), tmp_path / "out", form="npz")
    assert caught.value.code == "output_not_empty"
    assert theirs.read_bytes() == before


def test_a_record_of_something_else_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text("[1]")
    with pytest.raises(InputError) as caught:
        sample(runs["flow"], sampling(), tmp_path)
    assert caught.value.code == "output_in_use"


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [
        ("flow", {"sampler": "ddim"}, "unknown_sampler"),
        ("flow", {"ema": 0.123}, "unknown_ema"),
        ("flow", {"channels": 9}, "guidance_range"),
        ("unconditional", {"cfg_scale": 2.0}, "guidance_range"),
        ("unconditional", {"cfg_scale": 1.0, "classes": ("class0",)}, "unknown_classes"),
    ],
)
def test_what_a_model_can_not_do_is_an_error(
    runs: dict[str, Path], tmp_path: Path, name: str, changes: dict[str, Any], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        sample(runs[name], sampling(**changes), tmp_path / "out")
    assert caught.value.code == code


@pytest.mark.parametrize(
    "changes", [{"n_samples": 10**12}, {"n_samples": 0}, {"classes": ("class0", "class0")}]
)
def test_what_can_not_be_sampled_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        sampling(**changes)
    assert caught.value.code == "bad_config"


def test_images_that_are_no_numbers_are_an_error(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        sample(runs["flow"], sampling(cfg_scale=1e300), tmp_path)
    assert caught.value.code == "samples_not_finite"
    assert not any((tmp_path / "images").iterdir())


def test_missing_run_or_checkpoint_is_an_error(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        sample(tmp_path / "empty", sampling(), tmp_path / "out")
    assert caught.value.code == "no_run"
    record = (runs["flow"] / "training.json").read_bytes()
    (tmp_path / "empty" / "training.json").write_bytes(record)
    with pytest.raises(InputError) as caught:
        sample(tmp_path / "empty", sampling(), tmp_path / "out")
    assert caught.value.code == "no_checkpoint"
    (tmp_path / "empty" / "training.json").write_bytes(record[:-30])
    with pytest.raises(InputError) as caught:
        sample(tmp_path / "empty", sampling(), tmp_path / "out")
    assert caught.value.code == "bad_run"


def test_latents_are_decoded(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images", side_px=16)
    vae = save_tiny_vae(tmp_path / "vae")
    config = tiny_config(space="latent", vae=str(vae), resolution_px=16, preview_every=4)
    train(images, config, tmp_path / "run", preview=GridWriter(), device="cpu")
    sheet = Image.open(tmp_path / "run" / "previews" / "step-000000004.png")
    assert sheet.size == (8 * 18 - 2, 4 * 18 - 2)
    result = sample(tmp_path / "run", sampling(n_samples=2), tmp_path / "out")
    assert Image.open(result.images / "000001.png").size == (16, 16)
    save_other = save_tiny_vae(tmp_path / "vae")
    content = json.loads((save_other / "config.json").read_text())
    (save_other / "config.json").write_text(json.dumps({**content, "scaling_factor": 0.5}))
    with pytest.raises(InputError) as caught:
        sample(tmp_path / "run", sampling(n_samples=2), tmp_path / "other")
    assert caught.value.code == "unreadable_vae"


def test_preview_does_not_change_the_training(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    for name, preview_every in (("with", 1), ("without", 0)):
        config = tiny_config(preview_every=preview_every)
        train(images, config, tmp_path / name, preview=GridWriter(), device="cpu")
    paths = [checkpoint_path(tmp_path / name, 4) for name in ("with", "without")]
    first, second = (load_tensors(path)[0] for path in paths)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "with" / "previews" / "step-000000003.png").is_file()


def test_preview_is_not_lost_by_a_run_that_is_killed_as_it_draws(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    config = tiny_config(steps=2, checkpoint_every=2, preview_every=2)

    def killed(*_arguments: object) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        train(images, config, tmp_path / "run", preview=killed, device="cpu")
    train(images, config, tmp_path / "run", preview=GridWriter(), device="cpu")
    assert (tmp_path / "run" / "previews" / "step-000000002.png").is_file()


def test_grid_puts_images_in_rows() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    sheet = grid(images, n_columns=2)
    assert sheet.shape == (6, 6, 3)
    assert (sheet[:2, 4:] == 1).all()
    assert (sheet[4:, :2] == 2).all()
    assert (sheet[2:4] == 255).all()


def test_commands_train_and_sample_a_folder(gadc: Gadc, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    arguments = ["--model", "SiT-T/4", "--space", "pixel", "--resolution-px", 8, "--steps", 4]
    arguments += ["--batch-size", 4, "--log-every", 2, "--preview-every", 0, "--tracker", "none"]
    command = ["train", folder, "--out", tmp_path / "run", *arguments, "--device", "cpu", "--json"]
    trained = gadc(*command)
    assert trained.code == 0, trained.stderr
    assert trained.json["step"] == 4
    assert gadc(*command).json["n_steps"] == 0
    edited = folder / "class0" / "1.png"
    shutil.copy(folder / "class1" / "1.png", edited)
    assert gadc(*command[:-1]).error_code == "output_in_use"  # not the same images any more
    assert [record["step"] for record in read_losses(tmp_path / "run" / LOSSES_NAME)] == [2, 4]
    options = [
        "-n",
        3,
        "--steps",
        3,
        "--class",
        "class1",
        "--interval",
        0.1,
        0.9,
        "--device",
        "cpu",
    ]
    made = gadc("sample", tmp_path / "run", "--out", tmp_path / "out", *options, "--json")
    assert made.code == 0, made.stderr
    assert made.json["n_made"] == 3
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["labels"] == [1, 1, 1]


def test_command_trains_a_subset_and_names_what_is_wrong(gadc: Gadc, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    chosen = tmp_path / "chosen"
    selected = gadc("select", folder, "--encoder", "pixels", "--per-class", 2, "--out", chosen)
    assert selected.code == 0, selected.stderr
    small = ["--model", "SiT-T/4", "--space", "pixel", "--resolution-px", 8, "--steps", 1]
    small += ["--batch-size", 2, "--preview-every", 0, "--tracker", "none", "--device", "cpu"]
    trained = gadc("train", chosen, "--out", tmp_path / "run", *small, "--json")
    assert trained.code == 0, trained.stderr
    assert trained.json["n_images"] == 6
    small[5] = 6
    failed = gadc("train", chosen, "--out", tmp_path / "other", *small)
    assert (failed.code, failed.error_code) == (2, "patch_grid")
    small[5] = 100_000
    failed = gadc("train", chosen, "--out", tmp_path / "other", *small)
    assert (failed.code, failed.error_code) == (2, "bad_config")
    small[5] = 8
    failed = gadc("train", chosen, "--out", tmp_path / "other", *small, "--projection-depth", 2)
    assert (failed.code, failed.error_code) == (2, "option_unused")
    missing = gadc("train", tmp_path / "nothing", "--out", tmp_path / "other", *small)
    assert (missing.code, missing.error_code) == (2, "missing_source")
