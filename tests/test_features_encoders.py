import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from features_helpers import photo
from gadc.errors import InputError, MissingExtraError
from gadc.features import components
from gadc.features.encoders import PixelEncoder, available_encoders, load_encoder
from gadc.features.encoders.resnet_cifar import CLASS_NAMES, CifarResNet56
from gadc.features.forward import BlockForward
from gadc.features.probe import out_of_fold_confidence_loss


def test_unknown_encoder_lists_the_valid_ones():
    with pytest.raises(InputError) as caught:
        load_encoder("resnet5000")
    assert caught.value.code == "unknown_encoder"
    assert all(name in str(caught.value) for name in available_encoders())


def test_available_encoders_name_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = available_encoders()
    assert found["pixels"] is None
    assert found["torchvision:inception_v3"] == "pip install 'gadc[torchvision]'"


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("torchvision:resnet50", "torchvision", "gadc[torchvision]"),
        ("timm:resnet18", "timm", "gadc[timm]"),
        ("transformers:none/none", "transformers", "gadc[encoders]"),
    ],
)
def test_missing_library_names_the_extra(monkeypatch, name, library, extra):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(MissingExtraError) as caught:
        load_encoder(name, device="cpu")
    assert extra in str(caught.value)


@pytest.mark.parametrize("name", ["pixels", "transformers:anything"])
def test_weights_without_effect_are_refused(tmp_path, name):
    with pytest.raises(InputError) as caught:
        load_encoder(name, weights=tmp_path / "w.safetensors")
    assert caught.value.code == "weights_not_used"


def test_pixels_rows_are_levels():
    encoder = PixelEncoder(side_px=4)
    row = encoder.preprocess(Image.new("RGB", (31, 7), (1, 2, 3)))
    np.testing.assert_array_equal(row.reshape(4, 4, 3), np.full((4, 4, 3), [1, 2, 3]))


def test_pixels_of_digits_are_as_good_as_the_digits_themselves():
    images, labels = load_digits(return_X_y=True)
    encoder = PixelEncoder()
    levels = (images * 15.9).astype(np.uint8).reshape(-1, 8, 8)
    rows = np.stack([encoder.preprocess(Image.fromarray(g).convert("RGB")) for g in levels])
    mean, directions = components.principal_components(lambda: [rows], n_components=64)
    features = components.project(rows, mean, directions)
    assert features.shape == (1797, 64)
    loss = out_of_fold_confidence_loss(features, labels).mean()
    assert loss < out_of_fold_confidence_loss(images.astype(np.float32), labels).mean() + 0.02


def test_components_match_an_svd():
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (50, 12), dtype=np.uint8)
    mean, directions = components.principal_components(
        lambda: (rows[start : start + 7] for start in range(0, 50, 7)), n_components=5
    )
    centred = rows - rows.mean(axis=0)
    expected = np.linalg.svd(centred, full_matrices=False)[2][:5].T
    np.testing.assert_allclose(np.abs(expected.T @ directions), np.eye(5), atol=1e-9)
    assert (directions[np.abs(directions).argmax(axis=0), np.arange(5)] > 0).all()


def test_components_are_the_same_bits_for_any_blocks():
    rows = np.random.default_rng(1).integers(0, 256, (50, 12), dtype=np.uint8)
    whole = components.principal_components(lambda: [rows], n_components=5)
    parts = components.principal_components(lambda: np.split(rows, 10), n_components=5)
    np.testing.assert_array_equal(whole[1], parts[1])


@pytest.mark.parametrize("n_rows", [1, 3])
def test_components_without_variance_are_left_out(n_rows):
    rows = np.repeat(np.arange(12, dtype=np.uint8)[None], n_rows, axis=0)
    mean, directions = components.principal_components(lambda: [rows], n_components=5)
    assert directions.shape == (12, 1)
    np.testing.assert_array_equal(components.project(rows, mean, directions), 0)


@pytest.fixture(scope="module")
def cifar_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("cifar") / "resnet56.safetensors"
    save_file(CifarResNet56().state_dict(), path)
    return path


def test_cifar_resnet_has_the_published_number_of_parameters():
    # He et al. 2016, table 6: 0.85 M for 56 layers.
    assert sum(p.numel() for p in CifarResNet56().parameters()) == 853_018


def test_cifar_resnet_gives_features_and_their_own_probabilities(cifar_weights):
    encoder = load_encoder("cifar10-resnet56", weights=cifar_weights, device="cpu")
    features, probabilities = encoder.encode(np.stack([encoder.preprocess(photo())] * 2))
    logits = features @ encoder.model.linear.weight.detach().numpy().T
    logits += encoder.model.linear.bias.detach().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert encoder.class_names == list(CLASS_NAMES)
    assert encoder.n_features == 64


def test_cifar_resnet_of_an_image_does_not_depend_on_its_batch(cifar_weights):
    encoder = load_encoder("cifar10-resnet56", weights=cifar_weights, device="cpu")
    inputs = np.stack([encoder.preprocess(photo(seed=seed)) for seed in range(37)])
    with BlockForward(encoder, batch_size=1) as forward:
        together, _ = forward(inputs)
        for place in (0, 15, 36):
            alone, _ = forward(inputs[place : place + 1])
            np.testing.assert_array_equal(alone[0], together[place])
        backwards, _ = forward(inputs[::-1].copy())
    np.testing.assert_array_equal(backwards[::-1], together)


def test_cifar_resnet_fingerprint_follows_the_weights(cifar_weights, tmp_path):
    first = load_encoder("cifar10-resnet56", weights=cifar_weights, device="cpu").fingerprint()
    model = CifarResNet56()
    save_file(model.state_dict(), tmp_path / "other.safetensors")
    other = load_encoder("cifar10-resnet56", weights=tmp_path / "other.safetensors", device="cpu")
    assert len(first["weights_sha256"]) == 64
    assert first["weights_sha256"] != other.fingerprint()["weights_sha256"]
    json.dumps(first)


def test_cifar_resnet_needs_weights():
    with pytest.raises(InputError) as caught:
        load_encoder("cifar10-resnet56")
    assert caught.value.code == "weights_needed"


def test_cifar_resnet_refuses_weights_of_another_network(tmp_path):
    save_file({"linear.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_encoder("cifar10-resnet56", weights=tmp_path / "w.safetensors")
    assert caught.value.code == "wrong_weights"


@pytest.mark.parametrize(
    ("name", "code"), [("w.pt", "pickle_refused"), ("w.safetensors", "unreadable_weights")]
)
def test_cifar_resnet_refuses_pickled_weights(tmp_path, name, code):
    torch.save(CifarResNet56().state_dict(), tmp_path / name)
    with pytest.raises(InputError) as caught:
        load_encoder("cifar10-resnet56", weights=tmp_path / name)
    assert caught.value.code == code
