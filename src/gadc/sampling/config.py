"""What a sampling run is asked for, validated once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gadc.errors import InputError
from gadc.sampling.diffusion import sample_ddim, sample_ddpm
from gadc.sampling.flow import sample_euler, sample_euler_maruyama, sample_heun
from gadc.sampling.guidance import Guidance
from gadc.training.config import TrainConfig
from gadc.training.processes import Family

Labelling = Literal["balanced", "random"]
Format = Literal["png", "npz"]
Solve = Callable[..., torch.Tensor]

DEFAULT_STEPS = 250
MOST_SAMPLES = 10_000_000
DEFAULT_CFG_SCALE = 1.5
"""As published for DiT and SiT on subsets."""


@dataclass(frozen=True)
class Sampler:
    """A way to sample, and the models that it is for."""

    family: Family
    solve: Solve


SAMPLERS = {
    "ddpm": Sampler("DiT", sample_ddpm),
    "ddim": Sampler("DiT", sample_ddim),
    "euler": Sampler("SiT", sample_euler),
    "heun": Sampler("SiT", sample_heun),
    "euler-maruyama": Sampler("SiT", sample_euler_maruyama),
}
"""The first of each family is its default."""


class SampleConfig(BaseModel):
    """What to sample; every option of `gadc sample` that changes the images.

    Attributes:
        n_samples: How many images; at most 10 million.
        sampler: A name of `SAMPLERS`; None for the family's default.
        steps: Steps from noise to image.
        cfg_scale: See `Guidance.scale`. A model without classes and texts takes 1 only.
        interval: See `Guidance.interval`.
        channels: See `Guidance.channels`.
        labels: `balanced`: every class as often as any other, in every stretch of as many images
            as there are classes; `random`: drawn alike from all.
        classes: Only these, by name, each once; None for all.
        ema: Decay of the average whose weights are used; None for the first of the run's; 0 for
            the weights themselves.
        seed: Of the images' generators and of random labels.
        precision: `bf16` or `fp16` for the network; samplers stay in float32.

    Raises:
        InputError: `bad_config` or `guidance_range`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    n_samples: int = Field(default=50_000, ge=1, le=MOST_SAMPLES)
    sampler: str | None = None
    steps: int = Field(default=DEFAULT_STEPS, ge=1)
    cfg_scale: float = DEFAULT_CFG_SCALE
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None
    labels: Labelling = "balanced"
    classes: tuple[str, ...] | None = None
    ema: float | None = Field(default=None, ge=0.0, lt=1.0)
    seed: int = 0
    precision: Literal["no", "fp16", "bf16"] = "no"

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, part['loc']))}={part['input']!r}: {part['msg']}"
                for part in error.errors()
            ]
            raise InputError("bad_config", "; ".join(problems)) from error
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise InputError(
                "bad_config", f"classes: {', '.join(map(repr, twice))} is named more than once"
            )
        _ = self.guidance

    @property
    def guidance(self) -> Guidance:
        """How the model is guided."""
        return Guidance(self.cfg_scale, self.interval, self.channels)


def choose_sampler(name: str | None, family: Family) -> str:
    """Return the name of a sampler that fits a model.

    Raises:
        InputError: `unknown_sampler`.
    """
    fitting = [known for known, sampler in SAMPLERS.items() if sampler.family == family]
    if name is None:
        return fitting[0]
    if name not in fitting:
        raise InputError(
            "unknown_sampler", f"sampler={name!r} is not one for {family}: {', '.join(fitting)}"
        )
    return name


def check_fit(sampling: SampleConfig, training: TrainConfig) -> None:
    """Raise an InputError if no model that is trained so can be sampled so.

    Raises:
        InputError: `unknown_sampler`: of the other family; `guidance_range`: guidance of a model
            that never saw an image without its class.
    """
    choose_sampler(sampling.sampler, training.parts.family)
    if sampling.cfg_scale != 1.0 and training.drop_probability == 0:
        raise InputError(
            "guidance_range",
            f"cfg_scale={sampling.cfg_scale} needs a model trained with drop_probability above "
            "0; use 1",
        )
