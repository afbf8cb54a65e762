"""What is trained on: images, latents, texts and targets, and settings that don't fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gadc.errors import InputError
from gadc.images.index import open_index
from gadc.storage import escape_name
from gadc.training.conditions import CONDITIONS_NAME, Conditions, find_conditions
from gadc.training.config import parse_model
from gadc.training.images import TrainingImages, images_of_subset
from gadc.training.latents import training_inputs
from gadc.training.loop import train
from gadc.training.record import RunRecord
from gadc.training.spaces import LatentSpace, open_space, to_signed
from gadc.training.tensor_files import save_tensors
from subset_factory import folder_subset, without_digests
from training_runs import (
    SIDE_PX,
    save_tiny_vae,
    tiny_conditions,
    tiny_config,
    tiny_images,
)


def test_changed_or_missing_image_is_an_error(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    victim = tmp_path / "images" / images.ids[3]
    content = victim.read_bytes()
    for damage in (lambda: victim.write_bytes(content + b"x"), victim.unlink):
        damage()
        with pytest.raises(InputError) as caught:
            train(images, tiny_config(), tmp_path / "run", device="cpu")
        assert caught.value.code == "source_changed"
        assert images.ids[3] in caught.value.message


def test_images_without_a_digest_must_stay_the_same_too(tmp_path: Path) -> None:
    tiny_images(tmp_path / "images")
    subset, _ = folder_subset(tmp_path / "images")

    def opened() -> TrainingImages:
        return images_of_subset(without_digests(subset), open_index(tmp_path / "images"))

    before = opened()
    assert before.sha256 == subset.sha256
    victim = tmp_path / "images" / before.ids[3]
    victim.write_bytes(victim.read_bytes() + b"x")
    assert opened().fingerprint != before.fingerprint
    with pytest.raises(InputError) as caught:
        before.pixels(3, resolution_px=SIDE_PX)
    assert caught.value.code == "source_changed"


def test_pixels_are_what_the_image_holds(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    config = tiny_config()
    space = open_space(config, torch.device("cpu"))
    inputs = training_inputs(images, space, resolution_px=SIDE_PX, both=True, cache=tmp_path)
    rows, flips = np.array([2, 2]), np.array([False, True])
    found = inputs.gather(rows, flips, None, torch.device("cpu"))
    pixels = images.pixels(2, resolution_px=SIDE_PX)
    torch.testing.assert_close(found[0], torch.from_numpy(pixels).float() / 127.5 - 1)
    assert torch.equal(found[1], found[0].flip(2))
    assert np.array_equal(space.to_images(found)[0].transpose(2, 0, 1), pixels)


def test_latents_are_encoded_once_in_both_orientations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tiny_images(tmp_path / "images", side_px=16)
    config = tiny_config(space="latent", vae=str(save_tiny_vae(tmp_path / "vae")), resolution_px=16)
    space = open_space(config, torch.device("cpu"))
    assert isinstance(space, LatentSpace)
    assert (space.channels, space.side) == (4, 8)
    inputs = training_inputs(images, space, resolution_px=16, both=True, cache=tmp_path)
    posterior = torch.randn(2, 4, 8, 8)
    found = inputs.gather(np.array([5, 5]), np.array([False, True]), posterior, torch.device("cpu"))
    pixels = to_signed(images.pixels(5, resolution_px=16)[None])
    for row, shown in enumerate((pixels, pixels.flip(3))):
        latent = space.vae.encode(shown).latent_dist
        expected = 0.18215 * (latent.mean + latent.std * posterior[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-4, atol=1e-5)

    def never(_self: LatentSpace, _pixels: torch.Tensor) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(LatentSpace, "posterior", never)
    again = training_inputs(images, space, resolution_px=16, both=True, cache=tmp_path)
    assert torch.equal(again.mean, inputs.mean)
    others = tiny_images(tmp_path / "others", side_px=16, n_classes=2)
    with pytest.raises(AssertionError):
        training_inputs(others, space, resolution_px=16, both=True, cache=tmp_path)
    (path,) = tmp_path.glob("latents-*.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(AssertionError):
        training_inputs(images, space, resolution_px=16, both=True, cache=tmp_path)


def test_latents_are_trained_on(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images", side_px=16)
    config = tiny_config(
        space="latent", vae=str(save_tiny_vae(tmp_path / "vae")), resolution_px=16, model="DiT-T/4"
    )
    result = train(images, config, tmp_path / "run", device="cpu")
    assert result.loss is not None
    assert RunRecord.load(tmp_path / "run").shape.channels_out == 8


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"resolution_px": 6}, "patch_grid"),
        ({"model": "DiT-L"}, "unknown_model"),
        ({"model": "DiT-Q/2"}, "unknown_model"),
        ({"space": "latent", "vae": "no/such/folder/here"}, "unreadable_vae"),
        ({"ema_decays": (0.9, 0.9)}, "bad_config"),
        ({"steps": 0}, "bad_config"),
        ({"learning_rate": float("nan")}, "bad_config"),
        ({"colour": 3}, "bad_config"),
    ],
)
def test_bad_settings_are_input_errors(
    tmp_path: Path, changes: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    images = tiny_images(tmp_path / "images")
    with pytest.raises(InputError) as caught:
        train(images, tiny_config(**changes), tmp_path / "run", device="cpu")
    assert caught.value.code == code


def test_resolution_that_the_vae_does_not_divide_is_an_error(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images", side_px=16)
    config = tiny_config(space="latent", vae=str(save_tiny_vae(tmp_path / "vae")), resolution_px=15)
    with pytest.raises(InputError) as caught:
        train(images, config, tmp_path / "run", device="cpu")
    assert caught.value.code == "patch_grid"


def test_pickled_vae_is_refused(tmp_path: Path) -> None:
    vae = save_tiny_vae(tmp_path / "vae")
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "diffusion_pytorch_model.bin")
    config = tiny_config(space="latent", vae=str(vae))
    with pytest.raises(InputError) as caught:
        open_space(config, torch.device("cpu"))
    assert caught.value.code == "unreadable_vae"


def test_model_names() -> None:
    parts = parse_model("SiT-XL/2")
    assert (parts.family, parts.size.depth, parts.size.width, parts.patch) == ("SiT", 28, 1152, 2)


def test_conditions_survive_the_disk(tmp_path: Path) -> None:
    images = tiny_images(tmp_path / "images")
    written = tiny_conditions(images, n_tokens=4)
    path = tmp_path / CONDITIONS_NAME
    written.save(path)
    read = Conditions.load(path)
    assert written.text is not None
    assert read.text is not None
    assert read.visual is not None
    assert torch.equal(read.text, written.text)
    assert read.ids == written.ids
    assert read.fingerprint == written.fingerprint
    assert find_conditions(None, tmp_path) == path
    reordered = read.of_images(images.ids[::-1])
    assert reordered.visual is not None
    assert torch.equal(reordered.visual[0], read.visual[-1])
    with pytest.raises(InputError) as caught:
        read.of_images(["not there"])
    assert caught.value.code == "conditions_mismatch"


def test_conditions_mask_is_applied(tmp_path: Path) -> None:
    tensors = {
        "text": torch.ones(1, 3, 2),
        "text_mask": torch.tensor([[1, 1, 0]], dtype=torch.uint8),
        "text_index": torch.zeros(1, dtype=torch.int64),
    }
    metadata = {"gadc_conditions": "1", "ids": json.dumps([escape_name("a")]), "provenance": "{}"}
    path = tmp_path / CONDITIONS_NAME
    save_tensors(path, tensors, metadata)
    text = Conditions.load(path).text
    assert text is not None
    assert text.sum(2).tolist() == [[2.0, 2.0, 0.0]]
    tensors["text_index"] += 1
    save_tensors(path, tensors, metadata)
    with pytest.raises(InputError) as caught:
        Conditions.load(path)
    assert caught.value.code == "bad_conditions"


@pytest.mark.parametrize(
    ("n_tokens", "mirrored", "code"), [(9, True, "target_grid"), (4, False, "flip_without_mirror")]
)
def test_targets_that_do_not_fit_are_an_error(
    tmp_path: Path, n_tokens: int, mirrored: bool, code: str
) -> None:
    images = tiny_images(tmp_path / "images")
    conditions = tiny_conditions(images, n_tokens=n_tokens, mirrored=mirrored)
    with pytest.raises(InputError) as caught:
        train(images, tiny_config(), tmp_path / "run", conditions=conditions, device="cpu")
    assert caught.value.code == code
