import json
import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from features_helpers import photo
from gadc.attach.text import load_text_encoder
from gadc.attach.visual import PatchEncoder, load_patch_encoder
from gadc.errors import InputError, MissingExtraError
from gadc.images.decode import normalise, to_unit_range
from tiny_models import (
    DINO_WIDTH,
    PATCH_PX,
    PREPROCESSING,
    T5_WIDTH,
    save_dinov2,
    save_t5,
    save_tokeniser,
    t5_config,
    transformers,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_text_embeddings_are_the_encoders(tmp_path, whole):
    model = save_t5(tmp_path, whole=whole)
    encoder = load_text_encoder(str(tmp_path), device=CPU, n_tokens=8)
    found = encoder.encode(["a photo of red", "blue"])
    assert found.shape == (2, 8, T5_WIDTH)
    part = model.encoder if whole else model
    ids = torch.tensor([[3, 4, 5, 8, 1]])
    expected = part(input_ids=ids).last_hidden_state[0]
    # Padding changes the length of sums, and nothing else.
    torch.testing.assert_close(found[0, :5], expected, atol=1e-5, rtol=1e-5)
    assert not found[0, 5:].any()
    assert not found[1, 2:].any()
    assert found[1, :2].any(dim=1).all()


def test_text_embeddings_do_not_depend_on_the_other_texts(tmp_path):
    save_t5(tmp_path)
    encoder = load_text_encoder(str(tmp_path), device=CPU)
    texts = ["red", "a photo of blue", *["green"] * 40]
    torch.testing.assert_close(encoder.encode(texts)[:1], encoder.encode(texts[:1]))


def test_longer_texts_are_cut_with_a_warning(tmp_path, caplog):
    save_t5(tmp_path)
    encoder = load_text_encoder(str(tmp_path), device=CPU, n_tokens=3)
    with caplog.at_level(logging.WARNING):
        assert encoder.encode(["red", "a photo of blue"]).shape == (2, 3, T5_WIDTH)
    assert "1 of 2 texts have more than 3 tokens" in caplog.text
    caplog.clear()
    encoder.encode(["red blue"])  # exactly three, with the end
    assert not caplog.text


def test_text_encoder_in_bfloat16_says_so(tmp_path):
    save_t5(tmp_path)
    half = load_text_encoder(str(tmp_path), device=CPU, precision="bfloat16")
    whole = load_text_encoder(str(tmp_path), device=CPU)
    assert half.fingerprint()["precision"] == "bfloat16"
    assert half.fingerprint()["weights_sha256"] != whole.fingerprint()["weights_sha256"]
    texts = ["a photo of red"]
    torch.testing.assert_close(half.encode(texts), whole.encode(texts), atol=0.1, rtol=0.1)
    with pytest.raises(InputError):
        load_text_encoder(str(tmp_path), device=CPU, precision="float16")


def _no_weights(folder):
    t5_config().save_pretrained(folder)
    save_tokeniser(folder)


def _no_tokeniser(folder):
    transformers.T5EncoderModel(t5_config()).save_pretrained(folder)


def _pickled_weights(folder):
    _no_weights(folder)
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"shared.weight": 1}, file)


def _fewer_layers(folder):
    save_t5(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_layers": 3}))


def _another_type(folder):
    save_dinov2(folder)


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        (lambda folder: None, "unreadable_encoder"),
        (_no_weights, "unreadable_encoder"),
        (_no_tokeniser, "unreadable_encoder"),
        (_pickled_weights, "unreadable_encoder"),
        (_fewer_layers, "incomplete_weights"),
        (_another_type, "unsupported_encoder"),
    ],
)
def test_text_encoders_that_cannot_be_loaded_say_why_in_a_line(tmp_path, prepare, code):
    prepare(tmp_path)
    with pytest.raises(InputError) as caught:
        load_text_encoder(str(tmp_path), device=CPU)
    assert caught.value.code == code
    assert "\n" not in caught.value.message


def test_text_encoder_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"gadc\[encoders\]"):
        load_text_encoder("google/flan-t5-xl", device=CPU)


@pytest.mark.parametrize("n_registers", [0, 3])
@torch.no_grad()
def test_patch_tokens_are_the_encoders_at_the_grid(tmp_path, n_registers):
    model = save_dinov2(tmp_path, n_registers=n_registers)
    encoder = load_patch_encoder(str(tmp_path), device=CPU, image_size_px=32, token_px=4)
    square = photo(32, 32)
    assert (encoder.grid_side, encoder.input_px, encoder.n_tokens) == (8, 8 * PATCH_PX, 64)
    tokens, _ = encoder.encode(encoder.orientations(square, mirrored=False))
    assert tokens.shape == (1, 64, DINO_WIDTH)
    assert encoder.n_features == DINO_WIDTH
    scaled = square.resize((56, 56), Image.Resampling.BICUBIC)
    mean, std = PREPROCESSING["image_mean"], PREPROCESSING["image_std"]
    pixels = torch.from_numpy(normalise(to_unit_range(scaled), mean, std))[None]
    expected = model(pixel_values=pixels).last_hidden_state[:, 1 + n_registers :]
    np.testing.assert_allclose(tokens, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("image_size_px", "input_px"), [(256, 224), (512, 448)])
def test_patch_encoder_of_14_pixels_sees_images_as_repa(tmp_path, image_size_px, input_px):
    model = transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=224, patch_size=14
        )
    )
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    encoder = load_patch_encoder(str(tmp_path), device=CPU, image_size_px=image_size_px)
    assert encoder.input_px == input_px
    assert encoder.n_tokens == (image_size_px // 16) ** 2
    tokens, _ = encoder.encode(np.zeros((1, 3, input_px, input_px), np.float32))
    assert tokens.shape == (1, encoder.n_tokens, 8)


def test_second_orientation_is_the_mirrored_image(tmp_path):
    save_dinov2(tmp_path)
    encoder = load_patch_encoder(str(tmp_path), device=CPU, image_size_px=16, token_px=4)
    square = photo(16, 16)
    flipped = Image.fromarray(np.ascontiguousarray(np.asarray(square)[:, ::-1]))
    both = encoder.orientations(square, mirrored=True)
    np.testing.assert_array_equal(both[1], encoder.orientations(flipped, mirrored=False)[0])
    tokens, _ = encoder.encode(both)
    assert np.abs(tokens[0] - tokens[1]).max() > 1e-3


def test_patch_tokens_of_a_clip_tower_at_another_size(tmp_path):
    torch.manual_seed(1)
    tower = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**tower, "intermediate_size": 20, "vocab_size": 50},
            vision_config={**tower, "intermediate_size": 20, "image_size": 28, "patch_size": 7},
        )
    )
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    encoder = load_patch_encoder(str(tmp_path), device=CPU, image_size_px=24, token_px=4)
    tokens, _ = encoder.encode(encoder.orientations(photo(24, 24), mirrored=True))
    assert tokens.shape == (2, 36, 24)


@pytest.mark.parametrize(("image_size_px", "token_px"), [(250, 16), (8, 16), (256, 0)])
def test_sizes_that_do_not_fit_are_refused(tmp_path, image_size_px, token_px):
    save_dinov2(tmp_path)
    with pytest.raises(InputError) as caught:
        load_patch_encoder(
            str(tmp_path), device=CPU, image_size_px=image_size_px, token_px=token_px
        )
    assert caught.value.code == "patch_grid"


def test_encoders_without_patches_are_refused(tmp_path):
    model = transformers.ResNetModel(
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
        )
    )
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    with pytest.raises(InputError) as caught:
        load_patch_encoder(str(tmp_path), device=CPU, image_size_px=32, token_px=4)
    assert caught.value.code == "unsupported_encoder"


def test_patch_encoder_that_is_not_there(tmp_path):
    with pytest.raises(InputError) as caught:
        load_patch_encoder(str(tmp_path), device=CPU, image_size_px=256)
    assert caught.value.code == "unreadable_encoder"


def test_patch_encoder_fingerprint_tells_grids_and_weights_apart(tmp_path):
    prints = []
    for seed, token_px in ((1, 4), (1, 8), (2, 4)):
        folder = tmp_path / f"{seed}"
        folder.mkdir(exist_ok=True)
        save_dinov2(folder, seed=seed)
        encoder: PatchEncoder = load_patch_encoder(
            str(folder), device=CPU, image_size_px=32, token_px=token_px
        )
        prints.append({**encoder.fingerprint(), "name": ""})
    assert all(prints.count(each) == 1 for each in prints)
