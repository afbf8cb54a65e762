"""A trained model that samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from gadc.errors import InputError
from gadc.sampling.config import SAMPLERS, SampleConfig, check_fit, choose_sampler
from gadc.sampling.guidance import guided
from gadc.sampling.noise import ImageNoise
from gadc.training.checkpoint import MODEL_PREFIX, load_weights
from gadc.training.ema import prefix_of
from gadc.training.record import RunRecord, RunTexts
from gadc.training.spaces import DiffusionSpace, open_space
from gadc.training.transformer import DiffusionTransformer, TransformerOutput

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class SamplingModel:
    """Network, space and texts of a run, ready to sample.

    Args:
        record: Of the run.
        space: Where it diffuses.
        weights: By parameter.
        texts: It was trained with; None without.
        device: Where to compute.
        step: Of the weights.
    """

    def __init__(
        self,
        record: RunRecord,
        space: DiffusionSpace,
        weights: Mapping[str, torch.Tensor],
        *,
        texts: RunTexts | None,
        device: torch.device,
        step: int,
    ) -> None:
        self.record, self.space, self.texts, self.step = record, space, texts, step
        self.device = device
        with torch.device("meta"):
            network = DiffusionTransformer(record.shape)
        network.load_state_dict(dict(weights), strict=True, assign=True)
        self.network = network.to(device).eval().requires_grad_(False)

    @classmethod
    def load(cls, run: Path, *, ema: float | None, device: torch.device) -> Self:
        """Read a run's last whole checkpoint.

        Args:
            run: Its folder.
            ema: See `SampleConfig.ema`.
            device: Where to compute.

        Raises:
            InputError: `no_run`, `no_checkpoint`, `unknown_ema`, or the VAE is not there.
        """
        record = RunRecord.load(run)
        decays = record.config.ema_decays
        if ema is None:
            ema = decays[0] if decays else 0.0
        prefix = prefix_of(ema) if ema else MODEL_PREFIX
        step, weights = load_weights(run, record.config.identity, prefix)
        texts = RunTexts.load(run) if record.shape.n_text_tokens else None
        space = open_space(record.config, device)
        if space.fingerprint != record.space:
            raise InputError(
                "unreadable_vae",
                f"VAE {record.config.vae} is not the one that the run was trained with; restore it",
            )
        return cls(record, space, weights, texts=texts, device=device, step=step)

    @property
    def is_conditional(self) -> bool:
        """Whether there is anything to guide by."""
        return bool(self.record.shape.n_classes or self.record.shape.n_text_tokens)

    def check(self, config: SampleConfig) -> None:
        """Raise an InputError if the model can't do what is asked for."""
        check_fit(config, self.record.config)
        if config.cfg_scale != 1.0 and not self.is_conditional:
            raise InputError(
                "guidance_range",
                f"cfg_scale={config.cfg_scale} needs a model with classes or texts; use 1",
            )
        n_channels = self.record.shape.channels
        if config.channels is not None and config.channels > n_channels:
            raise InputError(
                "guidance_range",
                f"channels={config.channels}: the model's images have {n_channels} channels",
            )

    @torch.inference_mode()
    def sample(
        self, numbers: Sequence[int], labels: NDArray[np.int64] | None, config: SampleConfig
    ) -> NDArray[np.uint8]:
        """Make some images.

        Args:
            numbers: Which images of the run of sampling, from 0.
            labels: Class of each; None for a model without classes.
            config: How.

        Returns:
            Uint8 [b, height, width, 3].
        """
        shape = self.record.shape
        size = (shape.channels, shape.side, shape.side)
        noise = ImageNoise(config.seed, numbers, size, self.device)
        predict = guided(
            _Conditioned(self, labels, self._text_of(labels, noise, len(numbers)), config),
            config.guidance,
            n_channels=shape.channels,
        )
        name = choose_sampler(config.sampler, self.record.config.parts.family)
        x = SAMPLERS[name].solve(
            predict, noise, n_steps=config.steps, is_bounded=self.space.is_bounded
        )
        return self.space.to_images(x)

    def _text_of(
        self, labels: NDArray[np.int64] | None, noise: ImageNoise, n_images: int
    ) -> torch.Tensor | None:
        """Return one of its class's texts for each image, [b, n_tokens, width]."""
        if self.texts is None:
            return None
        numbers = [0] * n_images if labels is None else labels.tolist()
        rows = [self.texts.texts_of_class[number] for number in numbers]
        chosen = noise.choices([len(of_class) for of_class in rows])
        places = [int(of_class[place]) for of_class, place in zip(rows, chosen, strict=True)]
        return self.texts.text[torch.tensor(places)].float().to(self.device)


class _Conditioned:
    """The network with the classes and texts of a batch."""

    def __init__(
        self,
        model: SamplingModel,
        labels: NDArray[np.int64] | None,
        text: torch.Tensor | None,
        config: SampleConfig,
    ) -> None:
        network = model.network
        self._network, self._device = network, model.device
        self._half = HALF_TYPES.get(config.precision)
        self._labels = self._both_labels = None
        if network.classes is not None and labels is not None:
            self._labels = torch.from_numpy(labels).to(model.device)
            null = torch.full_like(self._labels, network.null_label)
            self._both_labels = torch.cat([self._labels, null])
        self._text = text
        self._both_text = None if text is None else torch.cat([text, torch.zeros_like(text)])

    def __call__(self, x: torch.Tensor, time: float, with_null: bool) -> torch.Tensor:
        """Return the prediction; see `guided`."""
        times = torch.full((len(x),), time, device=self._device)
        labels = self._both_labels if with_null else self._labels
        text = self._both_text if with_null else self._text
        kind = self._device.type
        with torch.autocast(kind, dtype=self._half, enabled=self._half is not None):
            output: TransformerOutput = self._network(x, times, labels, text)
        return output.prediction.float()
