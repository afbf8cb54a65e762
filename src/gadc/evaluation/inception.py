"""The Inception network of FID, sFID and the Inception Score, by way of torch-fidelity.

All three look at one network, of 2015, whose weights torch-fidelity took over from TensorFlow:

- FID and what compares neighbourhoods: the average pool, 2048 numbers.
- sFID: the first 7 channels of `mixed_6/conv`, 17 × 17 places each. torch-fidelity's converter maps
  that layer to `Mixed_6d.branch1x1`, after its ReLU. The numbers run place by place, the channels
  of a place together, as TensorFlow lays them out: statistics published with ADM have this order.
- Inception Score: the logits without the bias of the last layer, of 1008 classes, as ADM has them.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from gadc.errors import InputError, MissingExtraError
from gadc.features.encoders.base import OutputTap, exact_convolutions, state_sha256

NAME = "inception"
N_POOL = 2048
N_SPATIAL_CHANNELS = 7
SPATIAL_SIDE = 17
N_SPATIAL = N_SPATIAL_CHANNELS * SPATIAL_SIDE**2
N_LOGITS = 1008
POOL = slice(0, N_POOL)
SPATIAL = slice(N_POOL, N_POOL + N_SPATIAL)
LOGITS = slice(N_POOL + N_SPATIAL, N_POOL + N_SPATIAL + N_LOGITS)
"""Columns of a row of `InceptionEncoder`."""
INPUT_PX = 299


class InceptionEncoder:
    """One row for each image: pooled features, spatial features and logits.

    The network scales images itself, as the first TensorFlow did: bilinear, corners not aligned,
    and without smoothing. So images go in as they are, all of one size.

    Args:
        network: torch-fidelity's `FeatureExtractorInceptionV3`, made for `2048` and
            `logits_unbiased`.
        version: Of torch-fidelity, for the fingerprint.
        device: Where to compute.
    """

    name = NAME
    class_names = None
    n_components = None
    n_features = N_POOL + N_SPATIAL + N_LOGITS

    def __init__(self, network: torch.nn.Module, *, version: str, device: torch.device) -> None:
        self.device = device
        self._version = version
        self._weights_sha256 = state_sha256(network)
        self._network = network.to(device).eval()
        self._spatial = OutputTap(self._network.Mixed_6d.branch1x1)  # type: ignore[union-attr, arg-type]

    def fingerprint(self) -> dict[str, Any]:
        """Return digest of the weights, layers, scaling and version."""
        return {
            "name": self.name,
            "weights_sha256": self._weights_sha256,
            "preprocessing": {"size_px": INPUT_PX, "resample": "bilinear, as TensorFlow 1"},
            "layers": {
                "pool": "pool_3",
                "spatial": f"mixed_6/conv, first {N_SPATIAL_CHANNELS} channels",
                "logits": "without bias",
            },
            "torch_fidelity": self._version,
        }

    def preprocess(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return uint8 [3, height, width]."""
        return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))

    def encode(self, batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], None]:
        """Return rows [b, 5079] of images, uint8 [b, 3, height, width]."""
        with torch.inference_mode(), exact_convolutions(self.device):
            pool, logits = self._network(torch.from_numpy(batch).to(self.device))
            spatial = self._spatial.take()[:, :N_SPATIAL_CHANNELS]  # [b, 7, 17, 17]
            places = spatial.permute(0, 2, 3, 1).flatten(1)  # [b, 17 * 17 * 7]
            rows = torch.cat([pool, places, logits], dim=1)
            return rows.float().cpu().numpy(), None


def load_inception(weights: Path | None, device: torch.device) -> InceptionEncoder:
    """Load the network.

    Args:
        weights: torch-fidelity's weights: `weights-inception-2015-12-05-6726825d.pth`, or the same
            tensors as `.safetensors`. None downloads them, once.
        device: Where to compute.

    Raises:
        MissingExtraError: torch-fidelity, or the torchvision that it needs, can't be imported.
        InputError: `unreadable_weights`, `wrong_weights`, or `pickle_refused`: the file holds more
            than tensors.
    """
    try:
        import torch_fidelity
        from torch_fidelity import feature_extractor_inceptionv3 as fidelity
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision for another torch
        raise MissingExtraError(
            "missing_extra",
            f"encoder {NAME} needs torch-fidelity, and torchvision with it ({error}): pip install "
            "'gadc[eval]'",
        ) from error
    state = _read_state(weights) if weights else _download(fidelity.URL_INCEPTION_V3)
    return InceptionEncoder(
        _network(fidelity, state, weights),
        version=str(getattr(torch_fidelity, "__version__", "unknown")),
        device=device,
    )


def _network(fidelity: Any, state: dict[str, torch.Tensor], weights: Path | None) -> Any:
    # The class unpickles whatever file it is given, so it is given one that was made here.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(state, file)
        try:
            return fidelity.FeatureExtractorInceptionV3(
                NAME, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
            )
        except RuntimeError as error:
            raise InputError(
                "wrong_weights",
                f"weights {weights or 'downloaded'} belong to another network: {error}",
            ) from error


def _download(url: str) -> dict[str, torch.Tensor]:
    try:
        state: dict[str, torch.Tensor] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise InputError(
            "unreadable_weights",
            f"can't download the weights of {NAME} from {url}: {error}; give weights=FILE",
        ) from error
    return state


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise InputError("unreadable_weights", f"can't read weights {path}: there is no such file")
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, EOFError, RuntimeError, ValueError) as error:
        raise InputError("unreadable_weights", f"can't read weights {path}: {error}") from error
    except Exception as error:  # noqa: BLE001 - `UnpicklingError`, or whatever a pickle asks for
        raise InputError(
            "pickle_refused",
            f"weights {path} hold more than tensors, whose loading can run code: "
            f"{type(error).__name__}",
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise InputError("wrong_weights", f"weights {path} hold no tensors by name")
    return state
