"""The training loop: what it trains on, and that nothing is lost."""

import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gadc.errors import InputError, MissingExtraError, RunError
from gadc.runtime import pick_device
from gadc.training import tensor_files
from gadc.training.checkpoint import checkpoint_path, load_latest, saved_steps
from gadc.training.config import TrainConfig
from gadc.training.engine import Engine, new_network
from gadc.training.journal import LOSSES_NAME, read_losses
from gadc.training.latents import training_inputs
from gadc.training.loop import train
from gadc.training.machine import open_accelerator
from gadc.training.record import RECORD_NAME, RunRecord, describe
from gadc.training.spaces import open_space
from gadc.training.stream import Batch, StreamSettings, batches, draw_batch
from gadc.training.tensor_files import load_tensors, save_tensors
from gadc.training.transformer import DiffusionTransformer
from training_runs import (
    SIDE_PX,
    tiny_conditions,
    tiny_config,
    tiny_images,
    write_images,
)

STREAM = StreamSettings(
    seed=3, n_images=7, batch_size=5, shape=(2, 3, 3), flip=True, drop_probability=0.1,
    has_posterior=True,
)  # fmt: skip


def tensors_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    # Copies: what is read is a memory map, and some tests damage the file.
    tensors, _ = load_tensors(checkpoint_path(run, step))
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def losses(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in read_losses(run / LOSSES_NAME)]


def as_arrays(batch: Batch) -> list[Any]:
    return [batch.rows, batch.flips, batch.uniform, batch.drops, batch.noise, batch.posterior]


def test_stream_depends_on_seed_and_step_alone() -> None:
    ahead = dict(batches(STREAM, 0, 9))
    later = dict(batches(STREAM, 6, 9))
    for step in (8, 6, 7):
        for alone, first, second in zip(
            as_arrays(draw_batch(STREAM, step)),
            as_arrays(ahead[step]),
            as_arrays(later[step]),
            strict=True,
        ):
            np.testing.assert_array_equal(alone, first)
            np.testing.assert_array_equal(alone, second)
    assert sorted(ahead) == list(range(9))


def test_stream_shows_every_image_once_a_pass() -> None:
    rows = np.concatenate([draw_batch(STREAM, step).rows for step in range(7)])
    for number in range(5):
        assert sorted(rows[number * 7 : number * 7 + 7]) == list(range(7))
    assert not np.array_equal(rows[:7], rows[7:14])


def test_stream_has_its_shares() -> None:
    drawn = [draw_batch(STREAM, step) for step in range(2000)]
    n = 10_000
    drops, flips = (sum(getattr(b, name).sum() for b in drawn) for name in ("drops", "flips"))
    # Four standard deviations.
    assert abs(drops / n - 0.1) < 4 * (0.09 / n) ** 0.5
    assert abs(flips / n - 0.5) < 4 * (0.25 / n) ** 0.5
    assert abs(np.mean([b.uniform.mean() for b in drawn]) - 0.5) < 4 * (1 / 12 / n) ** 0.5


def test_class_and_text_are_dropped_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tiny_images(tmp_path / "images")
    conditions = tiny_conditions(images, n_tokens=4)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = DiffusionTransformer.forward

    def spy(self, x, times, labels=None, text=None):  # type: ignore[no-untyped-def]
        seen.append((labels, text))
        return forward(self, x, times, labels, text)

    monkeypatch.setattr(DiffusionTransformer, "forward", spy)
    config = tiny_config(steps=25, batch_size=40, drop_probability=0.1, checkpoint_every=100)
    train(images, config, tmp_path / "run", conditions=conditions, device="cpu")
    labels = torch.cat([pair[0] for pair in seen])
    text = torch.cat([pair[1] for pair in seen])
    is_null = labels == 3
    assert torch.equal(is_null, ~text.any(dim=(1, 2)))  # never one without the other
    assert abs(float(is_null.float().mean()) - 0.1) < 4 * (0.09 / 1000) ** 0.5
    assert conditions.text is not None
    assert torch.equal(text[~is_null], conditions.text[labels[~is_null]])


@pytest.mark.parametrize("model", ["SiT-T/4", "DiT-T/4"])
def test_one_batch_can_be_learned_by_heart(tmp_path: Path, model: str) -> None:
    images = tiny_images(tmp_path / "images", n_classes=1)
    config = tiny_config(model=model, batch_size=4, flip=False, drop_probability=0.0)
    engine, batch = fixed_engine(tmp_path, images, config)
    first = float(engine.step(0, batch)["loss"])
    for step in range(1, 100):
        last = float(engine.step(step, batch)["loss"])
    assert last < 0.1 * first


def fixed_engine(tmp_path: Path, images: Any, config: TrainConfig) -> tuple[Engine, Batch]:
    """Return an engine and one batch, to be trained on again and again."""
    accelerator = open_accelerator(config, tmp_path, "cpu")
    space = open_space(config, torch.device("cpu"))
    record = describe(config, images, space, None)
    inputs = training_inputs(
        images, space, resolution_px=config.resolution_px, both=config.flip, cache=tmp_path
    )
    labels = torch.from_numpy(images.labels)
    engine = Engine(accelerator, config, record.shape, inputs, labels, None)
    stream = StreamSettings(
        seed=0, n_images=images.n_images, batch_size=config.batch_size, shape=(3, SIDE_PX, SIDE_PX),
        flip=config.flip, drop_probability=0.0, has_posterior=False,
    )  # fmt: skip
    return engine, draw_batch(stream, 0)


def test_micro_batches_add_up(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    for name, micro_batch in (("whole", None), ("parts", 4)):
        config = tiny_config(batch_size=6, steps=2, micro_batch=micro_batch)
        train(images, config, tmp_path / name, device="cpu")
    whole, parts = tensors_of(tmp_path / "whole", 2), tensors_of(tmp_path / "parts", 2)
    for name, tensor in whole.items():
        if name.startswith("model."):  # Adam's first steps have the size of the learning rate
            torch.testing.assert_close(parts[name], tensor, rtol=0, atol=2e-4)


def test_averages_follow_the_weights(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    config = tiny_config(steps=1, checkpoint_every=1, ema_decays=(0.0, 0.75))
    train(images, config, tmp_path / "run", device="cpu")
    found = tensors_of(tmp_path / "run", 1)
    start = new_network(RunRecord.load(tmp_path / "run").shape, seed=config.seed)
    for name, before in start.named_parameters():
        after = found[f"model.{name}"]
        torch.testing.assert_close(found[f"ema.0.0.{name}"], after)
        torch.testing.assert_close(found[f"ema.0.75.{name}"], 0.75 * before + 0.25 * after)


def test_warm_up_begins_small(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    moved = {}
    for name, warmup_steps in (("warm", 10), ("cold", 0)):
        config = tiny_config(steps=1, checkpoint_every=1, warmup_steps=warmup_steps)
        train(images, config, tmp_path / name, device="cpu")
        # The bias begins at zero; Adam's first step is as large as the rate.
        moved[name] = float(tensors_of(tmp_path / name, 1)["model.final.linear.bias"].abs().max())
    assert moved["cold"] == pytest.approx(1e-3, rel=0.01)
    assert moved["warm"] == pytest.approx(1e-4, rel=0.01)


def test_alignment_is_learned_and_fits_the_orientation(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    conditions = tiny_conditions(images, n_tokens=4)
    assert conditions.visual is not None
    rows, flips = np.array([1, 1, 2]), np.array([False, True, True])
    targets = conditions.targets(rows, flips)
    assert targets is not None
    assert torch.equal(targets[0], conditions.visual[1, 0])
    assert torch.equal(targets[1], conditions.visual[1, 1])
    assert torch.equal(targets[2], conditions.visual[2, 1])
    config = tiny_config(steps=60, log_every=20, checkpoint_every=60, projection_depth=2)
    train(images, config, tmp_path / "run", conditions=conditions, device="cpu")
    found = [record["alignment"] for record in read_losses(tmp_path / "run" / LOSSES_NAME)]
    assert found[-1] < found[0] - 0.02
    assert -0.5 <= found[-1] <= 0.5


def test_killed_runs_end_as_one_that_was_not(tmp_path: Path) -> None:
    pictures = write_images(tmp_path / "images")
    script = str(Path(__file__).with_name("train_child.py"))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    folders = [str(straight), str(killed), str(pictures)]
    subprocess.run([sys.executable, script, *folders, "10", "23", "37"], check=True)
    first, second = tensors_of(straight, 40), tensors_of(killed, 40)
    assert {name.split(".")[0] for name in first} == {"model", "ema", "optimiser"}
    assert_same(first, second)
    assert losses(straight) == losses(killed)
    assert saved_steps(killed) == [30, 40]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    options = ["--model", "SiT-T/4", "--space", "pixel", "--resolution-px", "8", "--steps", "4"]
    options += ["--batch-size", "6", "--preview-every", "0", "--tracker", "none"]
    options += ["--device", "cpu", "--json"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    launcher += ["--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    for name, start in (("one", [sys.executable]), ("two", launcher)):
        command = [*start, "-m", "gadc.cli", "train", folder, "--out", tmp_path / name, *options]
        subprocess.run([str(part) for part in command], check=True)
    one, two = tensors_of(tmp_path / "one", 4), tensors_of(tmp_path / "two", 4)
    for name, tensor in one.items():
        # Adam's first steps have the size of the rate, 1e-4, whatever the gradient's rounding.
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


def test_longer_run_goes_on(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    train(images, tiny_config(steps=2), tmp_path / "run", device="cpu")
    result = train(images, tiny_config(steps=4), tmp_path / "run", device="cpu")
    assert (result.step, result.n_steps) == (4, 2)
    train(images, tiny_config(steps=4), tmp_path / "straight", device="cpu")
    assert_same(tensors_of(tmp_path / "run", 4), tensors_of(tmp_path / "straight", 4))
    again = train(images, tiny_config(steps=4), tmp_path / "run", device="cpu")
    assert again.n_steps == 0


def test_interrupted_run_saves_the_step_it_was_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tiny_images(tmp_path / "images")
    step = Engine.step

    def interrupting(self: Engine, number: int, batch: Batch) -> dict[str, torch.Tensor]:
        if number == 4:
            signal.raise_signal(signal.SIGINT)
        return step(self, number, batch)

    config = tiny_config(steps=9, checkpoint_every=100)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", interrupting)
        with pytest.raises(KeyboardInterrupt):
            train(images, config, tmp_path / "run", device="cpu")
    assert saved_steps(tmp_path / "run") == [5]
    train(images, config, tmp_path / "run", device="cpu")
    train(images, config, tmp_path / "straight", device="cpu")
    assert_same(tensors_of(tmp_path / "run", 9), tensors_of(tmp_path / "straight", 9))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    ],
    ids=["half", "last byte", "empty", "bit flip"],
)
def test_damaged_checkpoint_falls_back(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    images = tiny_images(tmp_path / "images")
    run = tmp_path / "run"
    train(images, tiny_config(steps=4), run, device="cpu")
    expected = tensors_of(run, 4)
    last = checkpoint_path(run, 4)
    last.write_bytes(damage(last.read_bytes()))
    with caplog.at_level(logging.ERROR):
        result = train(images, tiny_config(steps=4), run, device="cpu")
    assert "DAMAGED CHECKPOINT" in caplog.text
    assert result.n_steps == 2
    assert_same(tensors_of(run, 4), expected)


def test_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    for name, seed in (("run", 0), ("other", 1)):
        train(images, tiny_config(steps=2, seed=seed), tmp_path / name, device="cpu")
    shutil.copy(checkpoint_path(tmp_path / "other", 2), checkpoint_path(tmp_path / "run", 2))
    result = train(images, tiny_config(steps=2), tmp_path / "run", device="cpu")
    assert result.n_steps == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.replace(b'"class_names": [', b'"class_names": ["another",'),
        lambda _content: b"[" * 100_000,
    ],
)
def test_damaged_record_of_a_run_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    train(tiny_images(tmp_path / "images"), tiny_config(steps=1), tmp_path / "run", device="cpu")
    record = tmp_path / "run" / RECORD_NAME
    record.write_bytes(damage(record.read_bytes()))
    with pytest.raises(InputError) as caught:
        RunRecord.load(tmp_path / "run")
    assert caught.value.code == "bad_run"


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tiny_images(tmp_path / "images")
    run = tmp_path / "run"
    loss = Engine._loss

    def broken(self: Engine, batch: Batch, piece: list[int]) -> Any:
        found = loss(self, batch, piece)
        n_losses.append(1)
        factor = float("nan") if len(n_losses) == 5 else 1.0
        return type(found)(found.total * factor, found.terms)

    n_losses: list[int] = []
    monkeypatch.setattr(Engine, "_loss", broken)
    with pytest.raises(RunError) as caught:
        train(images, tiny_config(steps=8), run, device="cpu")
    assert caught.value.code == "loss_not_finite"
    assert "step 4" in caught.value.message
    assert saved_steps(run) == [2, 4]
    assert all(tensor.isfinite().all() for tensor in tensors_of(run, 4).values())
    assert [step for step, _ in losses(run)] == [2, 4]


def test_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tiny_images(tmp_path / "images")
    run = tmp_path / "run"
    train(images, tiny_config(steps=2), run, device="cpu")
    before = tensors_of(run, 2)

    def full(_tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise tensor_files.SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "save_file", full)
        with pytest.raises(RunError) as caught:
            train(images, tiny_config(steps=4), run, device="cpu")
    assert caught.value.code == "disk_full"
    assert_same(tensors_of(run, 2), before)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000000002.safetensors"]
    assert train(images, tiny_config(steps=4), run, device="cpu").step == 4


def test_tracker_that_is_not_installed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    for tracker in ("wandb", "tensorboard"):
        with pytest.raises(MissingExtraError, match=f"pip install {tracker}"):
            open_accelerator(tiny_config(tracker=tracker), tmp_path, "cpu")
    open_accelerator(tiny_config(tracker="none"), tmp_path, "cpu")


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_seed_may_be_any_that_torch_takes(tmp_path: Path, seed: int) -> None:
    images = tiny_images(tmp_path / "images")
    assert train(images, tiny_config(steps=1, seed=seed), tmp_path / "run", device="cpu").step == 1
    with pytest.raises(InputError) as caught:
        tiny_config(seed=seed + (1 if seed > 0 else -1))
    assert caught.value.code == "bad_config"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 10**20}, "batch_size=1000"),
        ({"steps": 10**9}, "steps=1000000000"),  # a checkpoint's name has nine digits
        ({"ema_decays": (0.9, float("nan"))}, "ema_decays=nan"),
    ],
)
def test_numbers_beyond_their_bounds_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        tiny_config(**changes)
    assert caught.value.code == "bad_config"


@pytest.mark.parametrize("name", ["mps", "meta", "xpu", "cpux"])
def test_devices_that_nothing_is_computed_on_are_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        pick_device(name)
    assert caught.value.code == "unknown_device"


def test_other_run_is_not_overwritten(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    run = tmp_path / "run"
    train(images, tiny_config(steps=2), run, device="cpu")
    before = checkpoint_path(run, 2).read_bytes()
    for changed in ({"learning_rate": 2e-3}, {"seed": 1}, {"model": "DiT-T/4"}):
        with pytest.raises(InputError) as caught:
            train(images, tiny_config(**changed), run, device="cpu")
        assert caught.value.code == "output_in_use"
        assert next(iter(changed)) in caught.value.message
    fewer = tiny_images(tmp_path / "fewer", n_classes=2)
    with pytest.raises(InputError, match="images"):
        train(fewer, tiny_config(), run, device="cpu")
    assert checkpoint_path(run, 2).read_bytes() == before


def test_tensor_file_refuses_every_flipped_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.arange(5.0), "b": torch.tensor([True])}, {"step": "3"})
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(RunError) as caught:
            load_tensors(path)
        assert caught.value.code == "corrupt", place


def test_latest_of_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path, "any") is None
