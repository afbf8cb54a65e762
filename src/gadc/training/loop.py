"""The training loop."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gadc.errors import InputError, RunError
from gadc.runtime import ProgressStyle, progress
from gadc.storage import exclusive, prepare_output
from gadc.training.checkpoint import (
    IDENTITY_KEY,
    checkpoint_path,
    load_latest,
    save_checkpoint,
)
from gadc.training.conditions import Conditions
from gadc.training.config import TrainConfig
from gadc.training.engine import Engine
from gadc.training.images import TrainingImages
from gadc.training.journal import LOSSES_NAME, Journal
from gadc.training.latents import training_inputs
from gadc.training.machine import noted_signals, open_accelerator, tf32
from gadc.training.record import RECORD_NAME, RunRecord, describe, save_texts
from gadc.training.spaces import DiffusionSpace, LatentSpace, open_space
from gadc.training.stream import StreamSettings, batches
from gadc.training.throughput import peak_flops, training_flops

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

logger = logging.getLogger(__name__)

Preview = Callable[[Path, RunRecord, DiffusionSpace, Mapping[str, torch.Tensor], int], None]
"""Called with the run's folder, its record, the space, weights and the step; draws samples."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run: Its folder.
        step: Steps done in all.
        n_steps: Steps done now.
        loss: Mean over the last interval; None if nothing was left to do.
        images_per_second: Over the steps done now; None likewise.
        flops_share: Part of the device's peak that these used; None where the peak is unknown.
        checkpoint: The last file.
    """

    run: Path
    step: int
    n_steps: int
    loss: float | None
    images_per_second: float | None
    flops_share: float | None
    checkpoint: Path


def train(
    images: TrainingImages,
    config: TrainConfig,
    out: Path,
    *,
    conditions: Conditions | None = None,
    preview: Preview | None = None,
    cache: Path | None = None,
    device: str = "auto",
    wait_seconds: float = 0.0,
    show: ProgressStyle = "silent",
) -> TrainResult:
    """Train a model, or go on with a run where it stopped.

    Several processes, started by `accelerate launch`, share each batch.

    Args:
        images: What to train on.
        config: See `TrainConfig`.
        out: The run's folder; a new one, or that of the same run.
        conditions: Texts and visual targets of at least these images.
        preview: Draws samples every `config.preview_every` steps.
        cache: Existing folder for latents, which runs on the same images can share; None for
            `out`.
        device: `auto` or `cpu`.
        wait_seconds: How long to wait for another process that uses the folder.
        show: See `gadc.runtime.progress`.

    Raises:
        MissingExtraError: accelerate or diffusers is not installed.
        InputError: Something doesn't fit together, or `output_in_use`: the folder is that of
            another run.
        RunError: `loss_not_finite`, `disk_full`; the last checkpoint is whole and kept.
    """
    accelerator = open_accelerator(config, out, device)
    lock: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if accelerator.is_main_process:
        prepare_output(out, images.selected.index.source)
        lock = exclusive(out, wait_seconds=wait_seconds)
    with lock, tf32():
        accelerator.wait_for_everyone()
        return _train(accelerator, images, config, out, conditions, preview, cache or out, show)


def _train(
    accelerator: "Accelerator",
    images: TrainingImages,
    config: TrainConfig,
    out: Path,
    conditions: Conditions | None,
    preview: Preview | None,
    cache: Path,
    show: ProgressStyle,
) -> TrainResult:
    is_main = bool(accelerator.is_main_process)
    if not is_main:
        show = "silent"
    space = open_space(config, accelerator.device)
    if conditions is not None:
        conditions = conditions.of_images(images.ids)
    record = describe(config, images, space, conditions)
    if is_main:
        _claim(out, record)
        if conditions is not None:
            save_texts(out, conditions, images.labels if record.shape.n_classes else None)
    with accelerator.main_process_first():
        inputs = training_inputs(
            images,
            space,
            resolution_px=config.resolution_px,
            both=config.flip,
            cache=cache,
            show=show,
        )
    inputs.to(accelerator.device)
    labels = None
    if record.shape.n_classes and images.labels is not None:
        labels = torch.from_numpy(images.labels)
    engine = Engine(accelerator, config, record.shape, inputs, labels, conditions)
    start = 0
    with accelerator.main_process_first():
        found = load_latest(out, config.identity, set_aside=is_main)
    if found is not None:
        engine.restore(found)
        start = found.step
        logger.info("going on from step %d of %s", start, out)
    accelerator.wait_for_everyone()
    stream = StreamSettings(
        seed=config.seed,
        n_images=images.n_images,
        batch_size=config.batch_size,
        shape=(space.channels, space.side, space.side),
        flip=config.flip,
        drop_probability=config.drop_probability,
        has_posterior=isinstance(space, LatentSpace),
    )
    loop = _Loop(accelerator, engine, record, stream, space, out, preview)
    return loop.run(start, show)


def _claim(out: Path, record: RunRecord) -> None:
    """Write the record, unless the folder is that of another run."""
    if (out / RECORD_NAME).is_file():
        known = RunRecord.load(out)
        if different := known.differences(record):
            raise InputError(
                "output_in_use",
                f"{out} is another run: {', '.join(different)}; choose a new folder, or give what "
                "that run was given",
            )
    record.save(out)


class _Loop:
    """Steps, with what has to happen now and then between them."""

    def __init__(
        self,
        accelerator: "Accelerator",
        engine: Engine,
        record: RunRecord,
        stream: StreamSettings,
        space: DiffusionSpace,
        out: Path,
        preview: Preview | None,
    ) -> None:
        self._accelerator, self._engine, self._record = accelerator, engine, record
        self._stream, self._space, self._out, self._preview = stream, space, out, preview
        self._config = record.config
        self._is_main = bool(accelerator.is_main_process)
        self._sums: dict[str, torch.Tensor] = {}
        self._n_summed = 0
        self._last_loss: float | None = None
        self._peak = peak_flops(engine.device, record.config.precision)

    def run(self, start: int, show: ProgressStyle) -> TrainResult:
        """Do the steps from `start` to the end."""
        config = self._config
        if self._is_main:
            self._journal = Journal(self._out / LOSSES_NAME, step=start)
        if config.tracker != "none":
            self._accelerator.init_trackers("trackers", config={"model": config.model})
        self._mark, self._marked_step, self._saved = time.monotonic(), start, start
        self._seconds_apart = 0.0
        started = self._mark
        with (
            progress("train", max(config.steps - start, 0), style=show) as bar,
            noted_signals() as ended,
        ):
            for step, batch in batches(self._stream, start, config.steps):
                self._add(self._engine.step(step, batch))
                done = step + 1
                is_asked = self._is_asked_to_end(ended, done)
                is_saved = is_asked or done == config.steps or done % config.checkpoint_every == 0
                if is_saved or done % config.log_every == 0:
                    self._log(done)
                # Before it is saved: a run that is killed in between does both again.
                if config.preview_every and done % config.preview_every == 0:
                    with self._apart():
                        self._draw(done)
                if is_saved:
                    with self._apart():
                        self._save(done)
                bar.advance()
                if is_asked:
                    break
        if config.tracker != "none":
            self._accelerator.end_training()
        if ended:
            raise ended[0]
        return self._result(start, time.monotonic() - started - self._seconds_apart)

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Leave the time of what is no training out of the images per second."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self._mark += seconds
        self._seconds_apart += seconds

    def _is_asked_to_end(self, ended: list[BaseException], done: int) -> bool:
        """Tell whether a signal came, to this process or, at every line of the log, to another.

        Processes have to stop at the same step: they wait for each other's gradients.
        """
        if int(self._accelerator.num_processes) == 1:
            return bool(ended)
        if done % self._config.log_every:
            return False
        flag = torch.tensor(float(bool(ended)), device=self._engine.device)
        if not float(self._accelerator.reduce(flag, reduction="sum")):
            return False
        if not ended:
            ended.append(KeyboardInterrupt())
        return True

    def _add(self, values: dict[str, torch.Tensor]) -> None:
        """Sum up without waiting for the device."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._n_summed += 1

    def _log(self, done: int) -> None:
        """Write the means since the last line; stop if one is no number."""
        if not self._n_summed:
            return
        names = sorted(self._sums)
        local = torch.stack([self._sums[name].float() for name in names]) / self._n_summed
        mean = self._accelerator.reduce(local, reduction="mean").tolist()
        values = dict(zip(names, mean, strict=True))
        n_steps, self._n_summed, self._sums = self._n_summed, 0, {}
        if not math.isfinite(values["loss"]):
            raise self._not_finite(done, f"the loss was {values['loss']}")
        self._last_loss = values["loss"]
        now = time.monotonic()
        rate = n_steps * self._config.batch_size / max(now - self._mark, 1e-9)
        self._mark = now
        values["images_per_second"] = rate
        if (share := self._flops_share(rate)) is not None:
            values["flops_share"] = share
        if self._is_main:
            finite = {
                name: value if math.isfinite(value) else None for name, value in values.items()
            }
            self._journal.append({"step": done, "n_steps": n_steps, **finite})
        if self._config.tracker != "none":
            self._accelerator.log(values, step=done)

    def _not_finite(self, done: int, what: str) -> RunError:
        kept = f"the checkpoint of step {self._saved} is kept" if self._saved else "none is saved"
        return RunError(
            "loss_not_finite",
            f"{what} between step {self._saved} and step {done}; {kept}. Train in a new folder "
            "with a lower learning_rate, a grad_clip, or precision bf16 instead of fp16",
        )

    def _flops_share(self, images_per_second: float) -> float | None:
        if self._peak is None:
            return None
        used = images_per_second * training_flops(self._record.shape)
        return used / (self._peak * int(self._accelerator.num_processes))

    def _save(self, done: int) -> None:
        self._require_finite(done)
        if self._is_main:
            metadata = {IDENTITY_KEY: self._config.identity, **self._engine.metadata()}
            save_checkpoint(self._out, done, self._engine.tensors(), metadata)
        self._saved = done
        self._accelerator.wait_for_everyone()

    def _require_finite(self, done: int) -> None:
        if not self._engine.is_finite():
            raise self._not_finite(done, "a weight became no number")

    def _draw(self, done: int) -> None:
        self._require_finite(done)
        if self._is_main and self._preview is not None:
            decays = self._config.ema_decays
            weights = (
                self._engine.averages.weights_of(decays[0])
                if decays
                else {name: p.detach() for name, p in self._engine.network.named_parameters()}
            )
            self._preview(self._out, self._record, self._space, weights, done)
        self._accelerator.wait_for_everyone()

    def _result(self, start: int, seconds: float) -> TrainResult:
        step = max(start, self._config.steps)
        n_steps = step - start
        rate = n_steps * self._config.batch_size / seconds if n_steps else None
        return TrainResult(
            run=self._out,
            step=step,
            n_steps=n_steps,
            loss=self._last_loss,
            images_per_second=rate,
            flops_share=None if rate is None else self._flops_share(rate),
            checkpoint=checkpoint_path(self._out, step),
        )


def as_json(result: TrainResult) -> dict[str, Any]:
    """Return a result for scripts."""
    found = dataclasses.asdict(result)
    return {**found, "run": str(result.run), "checkpoint": str(result.checkpoint)}
