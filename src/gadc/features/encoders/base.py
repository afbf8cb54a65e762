"""What an encoder is, and what those built on a torch network share."""

import contextlib
import functools
import hashlib
import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from gadc.errors import InputError
from gadc.features.encoders.preprocessing import Preprocessing


class Encoder(Protocol):
    """Turns images into feature vectors; owns its preprocessing."""

    @property
    def name(self) -> str:
        """What `load_encoder` was asked for."""

    @property
    def device(self) -> torch.device:
        """Where `encode` computes."""

    @property
    def class_names(self) -> list[str] | None:
        """Classes of its own head, one per column of probabilities; None without a head."""

    @property
    def n_components(self) -> int | None:
        """None if `encode` returns the features.

        Otherwise it returns 8-bit rows that are projected on at most this many principal
        components once all images are encoded.
        """

    @property
    def n_features(self) -> int:
        """Length of a feature vector; with `n_components`, the most it can be."""

    def fingerprint(self) -> dict[str, Any]:
        """Return all that the features depend on besides the image, as JSON."""

    def preprocess(self, image: Image.Image) -> NDArray[Any]:
        """Return the network's input for one RGB image; called from several threads."""

    def encode(self, batch: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Return features [b, d] and probabilities [b, c] of preprocessed images [b, ...].

        On a CPU called from several threads.
        """


class TorchEncoder(ABC):
    """An encoder built on a torch network; subclasses say how one forward pass is made.

    Args:
        name: See `Encoder`.
        model: The network with its weights.
        preprocessing: From image to network input.
        device: Where to compute.
        class_names: Classes of the network's head, or None.
        settings: More that belongs to the fingerprint, such as library versions.
    """

    n_components = None

    def __init__(
        self,
        name: str,
        model: torch.nn.Module,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        class_names: list[str] | None,
        settings: dict[str, Any],
    ) -> None:
        self.name = name
        self.device = device
        self.class_names = class_names
        self.preprocessing = preprocessing
        self._settings = settings
        self._weights_sha256 = state_sha256(model)
        # Channels last is the layout that CPU and tensor-core convolutions work in.
        self.model = model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @abstractmethod
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return features [b, d] and logits [b, c], or None, of pixels [b, 3, h, w]."""

    @functools.cached_property
    def n_features(self) -> int:
        """Length of a feature vector."""
        features, _ = self.encode(self.preprocess(Image.new("RGB", (64, 64)))[None])
        return int(features.shape[1])

    def fingerprint(self) -> dict[str, Any]:
        """Return name, digest of the weights, preprocessing and versions."""
        return {
            "name": self.name,
            "weights_sha256": self._weights_sha256,
            "preprocessing": self.preprocessing.as_json(),
            **self._settings,
        }

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """Return float32 [3, h, w]."""
        return self.preprocessing(image)

    def encode(
        self, batch: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return features [b, d] and softmax probabilities [b, c] of pixels [b, 3, h, w]."""
        with torch.inference_mode(), exact_convolutions(self.device):
            pixels = torch.from_numpy(batch).to(self.device, memory_format=torch.channels_last)
            features, logits = self.forward(pixels)
            probabilities = None
            if logits is not None and self.class_names is not None:
                probabilities = logits.float().softmax(dim=1).cpu().numpy()
            return features.float().cpu().numpy(), probabilities


class OutputTap:
    """Keeps what a module returned last, for the thread that called it."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._local = threading.local()
        module.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, given: Any, output: Any) -> None:
        self._local.output = output

    def take(self) -> Any:
        """Return the output, once."""
        output = self._local.output
        del self._local.output
        return output


def exact_convolutions(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Switch off what makes convolutions on a GPU inexact or irreproducible."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    # TF32 would cost three digits, and benchmarking would pick kernels by the clock.
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def state_sha256(model: torch.nn.Module) -> str:
    """Return the hexadecimal SHA-256 of a network's parameters and buffers.

    Of the tensors, not of a file: the same for a sharded checkpoint, a cached download and a
    local copy.
    """
    sha256 = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        sha256.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        sha256.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Fill a network from a safetensors file that has exactly its tensors.

    Raises:
        InputError: No safetensors file, or one for another network.
    """
    if path.suffix.lower() != ".safetensors":
        raise InputError(
            "pickle_refused",
            f"weights {path} are not a .safetensors file; other formats can run code when they "
            "are loaded: save the state dict with safetensors.torch.save_file",
        )
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError("unreadable_weights", f"can't read weights {path}: {error}") from error
    except RuntimeError as error:
        raise InputError(
            "wrong_weights", f"weights {path} belong to another network: {error}"
        ) from error
