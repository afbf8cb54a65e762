"""Tensors on disk: safetensors that know their own digest, written whole or not at all."""

import errno
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gadc.errors import RunError
from gadc.storage import write_atomically

DIGEST_KEY = "gadc_sha256"
DISK_FULL = ("No space left", "os error 28", "Disk quota", "os error 122")
"""How safetensors, which doesn't hand on the error's number, reports a full disk."""


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors atomically, with their digest among the metadata.

    Args:
        path: The file; its folder must exist.
        tensors: On any device; stored on the CPU.
        metadata: Anything to go with them.

    Raises:
        RunError: `disk_full` or `write_failed`; the file that was there before is still whole.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    pointers: set[int] = set()
    for name, tensor in held.items():  # safetensors refuses two names for the same memory
        if tensor.data_ptr() in pointers:
            held[name] = tensor.clone()
        pointers.add(tensor.data_ptr())
    described = {**metadata, DIGEST_KEY: _digest(held, metadata)}

    def write(temporary: Path) -> None:
        try:
            save_file(held, temporary, metadata=described)
        except SafetensorError as error:
            is_full = any(sign in str(error) for sign in DISK_FULL)
            raise OSError(errno.ENOSPC if is_full else errno.EIO, str(error)) from error

    write_atomically(path, write)


def load_tensors(
    path: Path, *, wanted: Callable[[str], bool] = lambda _name: True
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read tensors that `save_tensors` wrote, and verify every byte of the file.

    Args:
        path: The file.
        wanted: Which tensors to return, by name; the others are only verified.

    Returns:
        Tensors on the CPU, and the metadata.

    Raises:
        RunError: `corrupt`: missing, cut, or not what was written.
    """
    sha256 = hashlib.sha256()
    chosen = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
            expected = metadata.pop(DIGEST_KEY, None)
            _update_header(sha256, metadata)
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                _update(sha256, name, tensor)
                if wanted(name):
                    chosen[name] = tensor
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RunError("corrupt", f"{path} can't be read: {error}") from error
    if expected is None:
        raise RunError("corrupt", f"{path} has no digest; another program wrote it")
    if sha256.hexdigest() != expected:
        raise RunError("corrupt", f"{path} is not what was written")
    return chosen, metadata


def _digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    sha256 = hashlib.sha256()
    _update_header(sha256, metadata)
    for name in sorted(tensors):
        _update(sha256, name, tensors[name])
    return sha256.hexdigest()


def _update_header(sha256: "hashlib._Hash", metadata: Mapping[str, str]) -> None:
    sha256.update(json.dumps(dict(metadata), sort_keys=True).encode())


def _update(sha256: "hashlib._Hash", name: str, tensor: torch.Tensor) -> None:
    sha256.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
    content: NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    sha256.update(content.data)
