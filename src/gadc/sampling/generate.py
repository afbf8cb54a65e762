"""Sample a run: images into a folder, or into one file for ADM's evaluator."""

import contextlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gadc.errors import InputError, RunError
from gadc.images.decode import decode
from gadc.images.faults import ImageError
from gadc.runtime import ProgressStyle, pick_device, progress
from gadc.sampling.config import Format, SampleConfig, choose_sampler
from gadc.sampling.labels import class_numbers, image_labels
from gadc.sampling.model import SamplingModel
from gadc.sampling.pictures import png_bytes, write_npz
from gadc.storage import exclusive, prepare_output, write_bytes, write_json

logger = logging.getLogger(__name__)

RECORD_NAME = "samples.json"
IMAGES_FOLDER = "images"
NPZ_NAME = "samples.npz"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SampleResult:
    """What a run of sampling did.

    Attributes:
        out: Its folder.
        images: The folder of PNG files, or the `.npz` file.
        n_samples: Images in all.
        n_made: Made now; the others were there.
        step: Of the weights.
        is_complete: Whether all are there; not so where other processes still work.
    """

    out: Path
    images: Path
    n_samples: int
    n_made: int
    step: int
    is_complete: bool


def sample(
    run: Path,
    config: SampleConfig,
    out: Path,
    *,
    form: Format = "png",
    batch_size: int = 64,
    device: str = "auto",
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> SampleResult:
    """Make images with a run's last whole checkpoint; go on where an earlier call stopped.

    Image i is the same whatever the batch size and the number of processes, up to the rounding of
    sums that a device divides by batch. Several processes, started by `accelerate launch` or
    `torchrun`, each make a part: image i belongs to process i mod n.

    Args:
        run: Folder of a training run.
        config: What to make.
        out: New folder, or that of the same call.
        form: `png`: `images/000000.png` and so on; `npz`: `samples.npz` too, in ADM's form.
        batch_size: Images at a time; halved when a GPU's memory runs out.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.
        wait_seconds: How long to wait for another process that uses the folder.
        show: See `gadc.runtime.progress`.

    Raises:
        InputError: No such run; `output_in_use`: the folder holds other samples;
            `output_not_empty`: it holds images of whatever origin.
        RunError: `disk_full`; what is made is kept.
    """
    if batch_size < 1:
        raise InputError("bad_argument", f"batch_size={batch_size} must be at least 1")
    process, n_processes = _place_among_processes()
    prepare_output(out, run)
    lock = exclusive(out, wait_seconds=wait_seconds) if n_processes == 1 else _no_lock()
    with lock:
        model = SamplingModel.load(run, ema=config.ema, device=_device(device))
        model.check(config)
        labels = _labels(model, config)
        _claim(out, model, config, labels, form)
        folder = out / IMAGES_FOLDER
        folder.mkdir(exist_ok=True)
        mine = range(process, config.n_samples, n_processes)
        missing = [number for number in mine if not _is_there(folder, number)]
        with progress("sample", len(missing), style=show) as bar:
            maker = _Maker(model, config, labels, folder, batch_size)
            while missing:
                n_done = maker.make(missing)
                del missing[:n_done]
                bar.advance(n_done)
        is_complete = all((folder / _name(i)).is_file() for i in range(config.n_samples))
        target = folder
        if form == "npz" and is_complete and process == 0:
            target = _pack(out, folder, labels, config.n_samples)
    return SampleResult(
        out, target, config.n_samples, maker.n_made, model.step, is_complete=is_complete
    )


def _place_among_processes() -> tuple[int, int]:
    """Return this process's number and how many there are, as launchers tell by environment."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _no_lock() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _device(name: str) -> torch.device:
    local = os.environ.get("LOCAL_RANK")
    if name == "auto" and local is not None and torch.cuda.is_available():
        return torch.device("cuda", int(local))
    return pick_device(name)


def _labels(model: SamplingModel, config: SampleConfig) -> NDArray[np.int64] | None:
    names = model.record.class_names
    if not model.record.shape.n_classes:
        if config.classes is not None:
            raise InputError("unknown_classes", "the model was trained without classes")
        return None
    classes = class_numbers(names, config.classes)
    return image_labels(config.n_samples, classes, labelling=config.labels, seed=config.seed)


def _claim(
    out: Path,
    model: SamplingModel,
    config: SampleConfig,
    labels: NDArray[np.int64] | None,
    form: Format,
) -> None:
    """Write `samples.json`, unless the folder holds other samples."""
    family = model.record.config.parts.family
    wanted: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "config": {
            **config.model_dump(mode="json"),
            "sampler": choose_sampler(config.sampler, family),
        },
        "run": {
            "step": model.step,
            "identity": model.record.config.identity,
            "images": model.record.images,
            "conditions": model.record.conditions,
            "space": model.record.space,
            "model": model.record.config.model,
        },
        "resolution_px": model.record.config.resolution_px,
        "class_names": model.record.class_names,
        "labels": None if labels is None else labels.tolist(),
        "format": form,
    }
    path = out / RECORD_NAME
    # Looked for before the record, which another process writes before its first image.
    others = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith(".gadc"))
    if others and not path.exists():
        raise InputError(
            "output_not_empty",
            f"{out} holds {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}, but no "
            f"{RECORD_NAME}, which would say that it holds samples; choose a new or empty folder",
        )
    if path.exists():
        try:
            found = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or {**found, "format": form} != wanted:
            raise InputError(
                "output_in_use",
                f"{out} holds samples of another checkpoint or with other settings; choose a new "
                "folder",
            )
    write_json(path, wanted)


def _name(number: int) -> str:
    return f"{number:06d}.png"


def _is_there(folder: Path, number: int) -> bool:
    """Tell whether an image is there and whole; a torn one is made again."""
    path = folder / _name(number)
    if not path.is_file():
        return False
    try:
        decode(path.read_bytes())
    except ImageError as error:
        logger.warning("%s is damaged (%s) and made again", path, error.message)
        return False
    return True


class _Maker:
    """Makes images, batch by batch."""

    def __init__(
        self,
        model: SamplingModel,
        config: SampleConfig,
        labels: NDArray[np.int64] | None,
        folder: Path,
        batch_size: int,
    ) -> None:
        self._model, self._config, self._labels = model, config, labels
        self._folder, self._batch_size = folder, batch_size
        self.n_made = 0

    def make(self, missing: list[int]) -> int:
        """Make the first of the missing images; return how many."""
        numbers = missing[: self._batch_size]
        labels = None if self._labels is None else self._labels[numbers]
        try:
            images = self._model.sample(numbers, labels, self._config)
        except torch.cuda.OutOfMemoryError as error:
            if self._batch_size == 1:
                raise RunError(
                    "out_of_memory", "one image doesn't fit into the GPU's memory; use device='cpu'"
                ) from error
            self._batch_size = max(self._batch_size // 2, 1)
            logger.warning("out of memory: going on with batches of %d", self._batch_size)
            torch.cuda.empty_cache()
            return 0
        for number, image in zip(numbers, images, strict=True):
            write_bytes(self._folder / _name(number), png_bytes(image))
        self.n_made += len(numbers)
        return len(numbers)


def _pack(out: Path, folder: Path, labels: NDArray[np.int64] | None, n_samples: int) -> Path:
    """Write `samples.npz` from the PNG files."""
    path = out / NPZ_NAME

    def read(number: int) -> NDArray[np.uint8]:
        with Image.open(folder / _name(number)) as image:
            return np.asarray(image.convert("RGB"))

    shape = (n_samples, *read(0).shape)
    write_npz(path, shape, (read(number) for number in range(n_samples)), labels)
    return path
