"""`gadc doctor`: what is installed, and what works with it."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from gadc.cli.console import AsJson, emit, table

CORE_LIBRARIES = ("numpy", "scipy", "torch", "scikit-learn", "pillow", "pyarrow", "safetensors")
EXTRAS = {
    "encoders": ("transformers", "vision models of the Hugging Face hub, DINOv2 by default"),
    "torchvision": ("torchvision", "Inception v3, ResNets and GoogLeNet with ImageNet weights"),
    "timm": ("timm", "several hundred more vision models"),
    "train": ("accelerate", "training of diffusion models, and VAEs for it"),
    "eval": ("torch-fidelity", "the Inception network of FID: gadc evaluate"),
    "ray": ("ray", "work on several machines: --engine ray"),
    "report": ("plotly", "gadc report: one HTML file about selections and comparisons"),
}
"""By the name of the extra: its library, and what that adds."""
GIB = 1 << 30
HUB_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def doctor(as_json: AsJson = False) -> None:
    """Show what is installed, what the computer offers and which encoders can be used.

    Ends with a selection from a handful of made-up vectors, which shows that the core works.
    Nothing is downloaded and no file is written.
    """
    import gadc

    found: dict[str, Any] = {
        "gadc": gadc.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in CORE_LIBRARIES},
        "machine": _machine(),
        "extras": {
            extra: {"library": library, "version": _version(library), "adds": adds}
            for extra, (library, adds) in EXTRAS.items()
        },
        "encoders": _encoders(),
        "self_check": _self_check(),
    }
    emit(found, _as_text(found), as_json=as_json)


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    import torch

    return {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "gpus": [
            {
                "name": torch.cuda.get_device_name(number),
                "memory_gib": round(torch.cuda.get_device_properties(number).total_memory / GIB, 1),
            }
            for number in range(torch.cuda.device_count())
        ],
        "cores": _n_cores(),
        "memory_gib": _memory_gib(),
        "free_disk_gib": round(shutil.disk_usage(Path.cwd()).free / GIB, 1),
    }


def _n_cores() -> int:
    # A container or a batch system may grant fewer than there are; not every system can tell.
    granted = getattr(os, "sched_getaffinity", None)
    return len(granted(0)) if granted is not None else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return round(n_bytes / GIB, 1)


def _encoders() -> list[dict[str, Any]]:
    from gadc.features.encoders import DEFAULT_ENCODER, available_encoders

    encoders = [
        {"name": name, "usable": install is None, "note": install or _needs(name)}
        for name, install in available_encoders().items()
    ]
    missing = next((encoder["note"] for encoder in encoders if _serves(encoder)), None)
    default = {
        "name": f"{DEFAULT_ENCODER} (the default)",
        "usable": missing is None,
        "note": missing or _weights_here(DEFAULT_ENCODER.partition(":")[2]),
    }
    return [default, *encoders]


def _serves(encoder: dict[str, Any]) -> bool:
    return str(encoder["name"]).startswith("transformers:") and not encoder["usable"]


def _needs(name: str) -> str:
    if name == "pixels":
        return "nothing to download; works offline"
    if name == "cifar10-resnet56":
        return "needs --weights FILE"
    if name.startswith("transformers:"):
        return "weights are downloaded at the first use, or a folder holds them"
    return "weights are downloaded at the first use, or given by --weights FILE"


def _weights_here(model: str) -> str:
    """Say whether a model of the hub is already on this machine."""
    from huggingface_hub import try_to_load_from_cache

    is_here = any(isinstance(try_to_load_from_cache(model, name), str) for name in HUB_WEIGHTS)
    if is_here:
        return "weights are on this machine"
    return "weights are downloaded at the first use (346 MB); offline, use --encoder pixels"


def _self_check() -> str:
    """Choose from made-up vectors, and say how that went."""
    import numpy as np

    from gadc.objective import Objective
    from gadc.search import search

    rows = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    objective = Objective(rows)
    result = search(objective, 5)
    first = objective.value(list(range(5)))
    is_good = len(set(result.order.tolist())) == 5 and result.objective < first
    return (
        "ok" if is_good else f"failed: objective {result.objective} of the choice, {first} before"
    )


def _as_text(found: dict[str, Any]) -> str:
    machine = found["machine"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in machine["gpus"])
    memory = "unknown" if machine["memory_gib"] is None else f"{machine['memory_gib']} GiB"
    sections = {
        "versions": [
            ["gadc", found["gadc"]],
            ["python", found["python"]],
            *[[name, version or "MISSING"] for name, version in found["libraries"].items()],
        ],
        "machine": [
            ["platform", found["platform"]],
            [
                "computes on",
                f"{machine['device']}{f': {gpus}' if gpus else ' (no CUDA GPU found)'}",
            ],
            ["CPU cores", str(machine["cores"])],
            ["memory", memory],
            ["free disk here", f"{machine['free_disk_gib']} GiB"],
        ],
        "optional extras": [
            [
                extra,
                entry["version"] or "not installed",
                entry["adds"] if entry["version"] else f"{entry['adds']}: {_install(extra)}",
            ]
            for extra, entry in found["extras"].items()
        ],
        "encoders (what turns images into features; --encoder NAME)": [
            [encoder["name"], "yes" if encoder["usable"] else "no", encoder["note"]]
            for encoder in found["encoders"]
        ],
        "self-check": [["selecting 5 of 60 vectors", found["self_check"]]],
    }
    return "\n\n".join(f"{title}\n{_indented(rows)}" for title, rows in sections.items())


def _install(extra: str) -> str:
    return f"pip install 'gadc[{extra}]'"


def _indented(rows: list[list[str]]) -> str:
    return "\n".join(f"  {line}" for line in table(rows).split("\n"))
