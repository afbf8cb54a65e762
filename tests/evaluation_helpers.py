"""A stand-in for torch-fidelity's Inception, and sources of images for evaluations."""

import sys
import types

import numpy as np
import torch
from PIL import Image
from torch import nn

from gadc.evaluation import inception


class _Branch(nn.Module):
    """192 channels whose value says channel and place, scaled by the image's mean."""

    def forward(self, x):
        channel = torch.arange(192.0)[:, None, None] * 1000
        place = torch.arange(17.0 * 17).reshape(17, 17)
        return (channel + place)[None] * x.mean(dim=(1, 2, 3), keepdim=True)


class StubInception(nn.Module):
    """The interface of `FeatureExtractorInceptionV3`, with a network of a few numbers."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = _Branch()
        self.project = nn.Linear(3 * 4 * 4, inception.N_POOL, bias=False)
        self.fc = nn.Linear(inception.N_POOL, inception.N_LOGITS)
        if feature_extractor_weights_path is not None:
            # As the original: whatever the file holds is unpickled.
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x):
        assert x.dtype == torch.uint8
        x = x.float() / 255
        self.Mixed_6d.branch1x1(x)
        pooled = nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        features = self.project(pooled)
        return features, features @ self.fc.weight.T


def stub_weights(seed=0):
    torch.manual_seed(seed)
    return StubInception("inception", ["2048", "logits_unbiased"]).state_dict()


def install_stub(monkeypatch):
    """Let `import torch_fidelity` find the stand-in."""
    package = types.ModuleType("torch_fidelity")
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    package.__version__ = "0.0"
    package.__path__ = []
    package.feature_extractor_inceptionv3 = module
    module.FeatureExtractorInceptionV3 = StubInception
    module.URL_INCEPTION_V3 = "https://example.invalid/weights-6726825d.pth"
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    return module


def noise_images(n_images, *, side_px=12, seed=0):
    """Return smooth random images, uint8 [n, side, side, 3]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n_images, 3, 3, 3), dtype=np.uint8)
    return np.stack(
        [
            np.asarray(Image.fromarray(each).resize((side_px, side_px), Image.Resampling.BICUBIC))
            for each in small
        ]
    )


def write_pngs(folder, images, *, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, first):
        Image.fromarray(image).save(folder / f"{number:06d}.png")
    return folder
