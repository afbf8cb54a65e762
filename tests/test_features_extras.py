import enum
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from features_helpers import encode_one, photo
from gadc.errors import InputError
from gadc.features.encoders import load_encoder
from gadc.features.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


class _TransformingNet(nn.Module):
    """The shape of torchvision's Inception: transform_input, avgpool, dropout, fc."""

    def __init__(self, transform_input):
        super().__init__()
        self.transform_input = transform_input
        self.conv = nn.Conv2d(3, 5, 3)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(5, 3)

    def forward(self, pixels):
        if self.transform_input:
            mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
            pixels = (pixels * std + mean - 0.5) / 0.5
        return self.fc(torch.flatten(self.dropout(self.avgpool(self.conv(pixels))), 1))


class _Interpolation(enum.Enum):
    BILINEAR = "bilinear"


@pytest.fixture
def torchvision_stub(monkeypatch):
    calls = {}

    class Default:
        meta = {"categories": ["cat", "dog", "cow"]}

        def transforms(self):
            return types.SimpleNamespace(
                crop_size=[28],
                resize_size=[40],
                mean=list(IMAGENET_MEAN),
                std=list(IMAGENET_STD),
                interpolation=_Interpolation.BILINEAR,
            )

        def get_state_dict(self, **options):
            calls["state"] = options
            torch.manual_seed(3)
            return _TransformingNet(True).state_dict()

    def get_model(name, weights, **options):
        calls["model"] = (name, weights, options)
        return _TransformingNet(options.get("transform_input", False))

    module = types.ModuleType("torchvision")
    module.__version__ = "0.0"
    module.models = types.SimpleNamespace(
        get_model=get_model,
        get_model_weights=lambda name: types.SimpleNamespace(DEFAULT=Default()),
    )
    monkeypatch.setitem(sys.modules, "torchvision", module)
    return calls


@torch.no_grad()
def test_torchvision_features_and_probabilities_see_the_same_input(torchvision_stub):
    encoder = load_encoder("torchvision:inception_v3", device="cpu")
    features, probabilities = encode_one(encoder)
    model = encoder.model
    pixels = torch.from_numpy(encoder.preprocess(photo()))[None]
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    signed = (pixels * std + mean) * 2 - 1  # what Inception was trained on
    expected = model.conv(signed).mean(dim=(2, 3))
    np.testing.assert_allclose(features, expected[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(
        probabilities, model.fc(expected).softmax(dim=1)[0].numpy(), atol=1e-5
    )


def test_torchvision_weights_are_loaded_without_unpickling(torchvision_stub):
    load_encoder("torchvision:resnet50", device="cpu")
    name, weights, _ = torchvision_stub["model"]
    assert (name, weights) == ("resnet50", None)
    assert torchvision_stub["state"]["weights_only"] is True
    assert torchvision_stub["state"]["check_hash"] is True


def test_torchvision_preprocessing_is_the_presets(torchvision_stub):
    encoder = load_encoder("torchvision:googlenet", device="cpu")
    assert encoder.preprocessing == Preprocessing(40, 28, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    assert encoder.class_names == ["cat", "dog", "cow"]


def test_torchvision_weights_from_a_file(torchvision_stub, tmp_path):
    save_file(_TransformingNet(False).state_dict(), tmp_path / "w.safetensors")
    load_encoder("torchvision:resnet34", weights=tmp_path / "w.safetensors", device="cpu")
    assert "state" not in torchvision_stub


def test_torchvision_other_model_is_unknown():
    with pytest.raises(InputError, match="torchvision:resnet34") as caught:
        load_encoder("torchvision:vgg11", device="cpu")
    assert caught.value.code == "unknown_encoder"


class _TimmNet(_TransformingNet):
    num_classes = 3

    def __init__(self):
        super().__init__(False)

    def forward_features(self, pixels):
        return self.conv(pixels)

    def forward_head(self, hidden, pre_logits=False):
        pooled = torch.flatten(self.avgpool(hidden), 1)
        return pooled if pre_logits else self.fc(pooled)


@pytest.fixture
def timm_stub(monkeypatch):
    config = {
        "input_size": (3, 28, 28),
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    module = types.ModuleType("timm")
    module.__version__ = "0.0"
    module.is_model = lambda name: name == "tiny"
    module.list_models = lambda: ["tiny"]
    module.create_model = lambda name, pretrained: _TimmNet()
    module.data = types.SimpleNamespace(
        resolve_model_data_config=lambda model: config,
        infer_imagenet_subset=lambda model: None,
    )
    monkeypatch.setitem(sys.modules, "timm", module)
    return config


@torch.no_grad()
def test_timm_features_are_the_pooled_ones(timm_stub):
    encoder = load_encoder("timm:tiny", device="cpu")
    features, probabilities = encode_one(encoder)
    pixels = torch.from_numpy(encoder.preprocess(photo()))[None]
    expected = encoder.model.conv(pixels).mean(dim=(2, 3))[0]
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)
    assert probabilities is None  # the classes of its head are not known
    assert encoder.preprocessing.size_px == 31  # floor(28 / 0.9)


def test_timm_squash_scales_to_a_square(timm_stub):
    timm_stub["crop_mode"] = "squash"
    encoder = load_encoder("timm:tiny", device="cpu")
    assert encoder.preprocessing.size_px == (31, 31)


@pytest.mark.parametrize(
    "change", [{"input_size": (1, 28, 28)}, {"crop_mode": "border"}, {"interpolation": "magic"}]
)
def test_timm_unsupported_preprocessing_is_refused(timm_stub, change):
    timm_stub.update(change)
    with pytest.raises(InputError) as caught:
        load_encoder("timm:tiny", device="cpu")
    assert caught.value.code == "bad_preprocessing"


def test_timm_unknown_model_names_near_ones(timm_stub):
    with pytest.raises(InputError, match="near it: tiny") as caught:
        load_encoder("timm:tinny", device="cpu")
    assert caught.value.code == "unknown_encoder"
