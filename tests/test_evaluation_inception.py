import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluation_helpers import StubInception, install_stub, noise_images, stub_weights
from gadc.errors import InputError, MissingExtraError
from gadc.evaluation import inception
from gadc.evaluation.evaluate import load_judge
from gadc.evaluation.inception import InceptionEncoder, load_inception

CPU = torch.device("cpu")


def batch(n_images=2, side_px=20):
    return noise_images(n_images, side_px=side_px).transpose(0, 3, 1, 2).copy()


def test_inception_rows_hold_pool_spatial_and_logits():
    network = StubInception("inception", ["2048", "logits_unbiased"])
    rows, heads = InceptionEncoder(network, version="0", device=CPU).encode(batch())
    with torch.no_grad():
        pool, logits = network(torch.from_numpy(batch()))
    assert heads is None
    assert rows.shape == (2, InceptionEncoder.n_features)
    np.testing.assert_allclose(rows[:, inception.POOL], pool.numpy(), rtol=1e-6)
    np.testing.assert_allclose(rows[:, inception.LOGITS], logits.numpy(), rtol=1e-6)


def test_inception_spatial_features_run_place_by_place_of_seven_channels():
    network = StubInception("inception", ["2048", "logits_unbiased"])
    white = np.full((1, 3, 8, 8), 255, np.uint8)  # a mean of 1: the stand-in's own numbers
    rows, _ = InceptionEncoder(network, version="0", device=CPU).encode(white)
    expected = [1000 * c + 17 * y + x for y in range(17) for x in range(17) for c in range(7)]
    np.testing.assert_allclose(rows[0, inception.SPATIAL], expected)


@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_inception_loads_weights_of_a_file(tmp_path, monkeypatch, form):
    install_stub(monkeypatch)
    state = stub_weights(3)
    path = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    encoder = load_inception(path, CPU)
    torch.testing.assert_close(encoder._network.state_dict(), state)
    other = stub_weights(4)
    save_file(other, tmp_path / "other.safetensors")
    prints = [
        load_inception(file, CPU).fingerprint()["weights_sha256"]
        for file in (path, tmp_path / "other.safetensors")
    ]
    assert prints[0] == encoder.fingerprint()["weights_sha256"]
    assert prints[0] != prints[1]


class _Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_inception_weights_with_code_are_refused_and_not_run(tmp_path, monkeypatch):
    install_stub(monkeypatch)
    torch.save({"weight": _Canary(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(InputError) as caught:
        load_inception(tmp_path / "weights.pth", CPU)
    assert caught.value.code == "pickle_refused"
    assert not (tmp_path / "ran").exists()


def test_inception_weights_of_another_network_are_refused(tmp_path, monkeypatch):
    install_stub(monkeypatch)
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_inception(tmp_path / "w.safetensors", CPU)
    assert caught.value.code == "wrong_weights"


@pytest.mark.parametrize("name", ["missing.pth", "text.pth", "text.safetensors"])
def test_inception_weights_that_cannot_be_read(tmp_path, monkeypatch, name):
    install_stub(monkeypatch)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(InputError) as caught:
        load_inception(tmp_path / name, CPU)
    assert caught.value.code in ("unreadable_weights", "pickle_refused")


def test_inception_downloads_tensors_only(monkeypatch):
    install_stub(monkeypatch)
    asked = {}

    def download(url, **options):
        asked.update(options, url=url)
        return stub_weights()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    load_inception(None, CPU)
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True
    assert asked["url"].endswith("6726825d.pth")


def test_inception_without_a_network_says_what_to_do(monkeypatch):
    install_stub(monkeypatch)

    def fail(*_arguments, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(InputError, match="weights=FILE.*pixels") as caught:
        load_judge("inception", device="cpu")
    assert caught.value.code == "unreadable_weights"


def test_inception_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MissingExtraError, match=r"gadc\[eval\]") as caught:
        load_judge("inception", device="cpu")
    assert caught.value.code == "missing_extra"
    assert "\n" not in caught.value.message


def test_unknown_judge_lists_the_known_ones():
    with pytest.raises(InputError, match="inception, dinov2, pixels") as caught:
        load_judge("vgg")
    assert caught.value.code == "unknown_encoder"


@pytest.fixture
def fidelity(monkeypatch):
    """torch-fidelity's own module, without the package's import of torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity is not installed")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    package.feature_extractor_inceptionv3 = module
    yield module
    for name in [name for name in sys.modules if name.startswith("torch_fidelity.")]:
        del sys.modules[name]


@torch.no_grad()
def test_inception_layers_are_those_of_torch_fidelity(fidelity, tmp_path, monkeypatch):
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        state = fidelity.FeatureExtractorInceptionV3("x", ["2048"]).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    encoder = load_inception(tmp_path / "w.safetensors", CPU)
    images = batch(1, 32)
    rows, _ = encoder.encode(images)
    net = encoder._network
    x = fidelity.interpolate_bilinear_2d_like_tensorflow1x(
        torch.from_numpy(images).float(), size=(299, 299), align_corners=False
    )
    x = (x - 128) / 128
    first = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1"]
    names = [*first, "Conv2d_4a_3x3", "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d"]
    for name in [*names, "Mixed_6a", "Mixed_6b", "Mixed_6c"]:
        x = getattr(net, name)(x)
    spatial = net.Mixed_6d.branch1x1(x)[0, :7]  # [7, 17, 17]
    for name in ["Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"]:
        x = getattr(net, name)(x)
    pool = x.mean(dim=(2, 3))
    logits = pool @ net.fc.weight.T
    expected = [pool[0], spatial.permute(1, 2, 0).flatten(), logits[0]]
    for columns, numbers in zip(
        (inception.POOL, inception.SPATIAL, inception.LOGITS), expected, strict=True
    ):
        scale = float(numbers.abs().max())
        assert scale > 0.0
        np.testing.assert_allclose(rows[0, columns], numbers.numpy(), atol=1e-5 * scale)
