"""What a training run is asked for, validated once."""

import re
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gadc.errors import InputError
from gadc.images.decode import MOST_PIXELS_PER_SIDE
from gadc.storage import digest
from gadc.training.ddpm import GaussianDiffusion
from gadc.training.interpolant import LinearInterpolant
from gadc.training.processes import Family, Process
from gadc.training.transformer import SIZES, Size

Space = Literal["latent", "pixel"]
Precision = Literal["no", "fp16", "bf16"]
Tracker = Literal["tensorboard", "wandb", "none"]

DEFAULT_VAE = "stabilityai/sd-vae-ft-ema"
PATCHES = (1, 2, 4, 8)
MOST_STEPS = 999_999_999
"""Names of checkpoints have nine digits."""
MOST_IMAGES_PER_STEP = 1 << 20
MODEL_NAME = re.compile(r"(DiT|SiT)-([A-Z]+)/(\d+)")
DEFAULT_PROJECTION_DEPTH = 8
"""The paper on alignment (REPA) uses the eighth block."""
FREE_TO_CHANGE = frozenset(
    [
        "steps",
        "micro_batch",
        "compile",
        "log_every",
        "checkpoint_every",
        "preview_every",
        "tracker",
    ]
)
"""What a run may change when it goes on: none of it changes what a step computes."""


@dataclass(frozen=True)
class ModelName:
    """`DiT-L/2` taken apart."""

    family: Family
    size: Size
    patch: int

    @property
    def process(self) -> Process:
        """How the family noises images."""
        return GaussianDiffusion() if self.family == "DiT" else LinearInterpolant()


def parse_model(name: str) -> ModelName:
    """Take a model's name apart.

    Args:
        name: `<DiT|SiT>-<T|S|B|L|XL>/<patch>`.

    Raises:
        InputError: `unknown_model`.
    """
    found = MODEL_NAME.fullmatch(name)
    if found is None or found[2] not in SIZES or int(found[3]) not in PATCHES:
        raise InputError(
            "unknown_model",
            f"model {name!r} is not <DiT|SiT>-<{'|'.join(SIZES)}>/"
            f"<{'|'.join(map(str, PATCHES))}>, such as DiT-L/2",
        )
    family: Family = "DiT" if found[1] == "DiT" else "SiT"
    return ModelName(family, SIZES[found[2]], int(found[3]))


class TrainConfig(BaseModel):
    """Every option of `gadc train` but where things lie.

    The defaults are the published settings (DiT, SiT, REPA), with gradients clipped at 1.

    Attributes:
        model: See `parse_model`.
        space: `latent`: of a VAE; `pixel`: the images themselves.
        resolution_px: Side of the square that is cut from each image; at most 8,192.
        vae: Hub id or folder of a diffusers `AutoencoderKL`; for `latent` only.
        steps: Optimiser steps in all; at most 999,999,999.
        batch_size: Images of a step, on all devices together; at most 1,048,576.
        micro_batch: At most this many of them at a time on each device, for want of memory; the
            gradients are added up. Default: all.
        learning_rate: Constant after the warm-up.
        warmup_steps: Over which the rate rises from 0.
        weight_decay: Of AdamW.
        betas: Of AdamW.
        grad_clip: Largest norm of the gradient; None to leave it as it is.
        drop_probability: Share of images that are trained without class and text, both at once,
            as guidance needs it.
        flip: Whether half of the images are mirrored.
        conditional: Whether the classes are used, where there are some.
        use_text: Whether texts are used, where there are some.
        projection_weight: Of the alignment with visual features, where there are some; 0 for none.
        projection_depth: After which block; see `TransformerShape`. Default: the eighth, or the
            last of a model that has fewer.
        ema_decays: Of the averages of the weights that are kept.
        precision: `bf16` or `fp16` for mixed precision.
        compile: Whether `torch.compile` translates the model.
        seed: For the weights at the start and for the stream of images and noise; what torch
            takes, 64 bits with sign.
        log_every: Steps between two lines of `losses.jsonl`.
        checkpoint_every: Steps between two checkpoints.
        preview_every: Steps between two grids of samples; 0 for none.
        tracker: Which of accelerate's trackers also gets the losses.

    Raises:
        InputError: `bad_config`, with every field that can't be used, or `unknown_model`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = "DiT-L/2"
    space: Space = "latent"
    resolution_px: int = Field(default=256, ge=1, le=MOST_PIXELS_PER_SIDE)
    vae: str | None = DEFAULT_VAE
    steps: int = Field(default=100_000, ge=1, le=MOST_STEPS)
    batch_size: int = Field(default=128, ge=1, le=MOST_IMAGES_PER_STEP)
    micro_batch: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0.0)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float | None = Field(default=1.0, gt=0.0)
    drop_probability: float = Field(default=0.1, ge=0.0, lt=1.0)
    flip: bool = True
    conditional: bool = True
    use_text: bool = True
    projection_weight: float = Field(default=0.5, ge=0.0)
    projection_depth: int | None = Field(default=None, ge=1)
    ema_decays: tuple[float, ...] = (0.9999,)
    precision: Precision = "no"
    compile: bool = False
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    log_every: int = Field(default=100, ge=1)
    checkpoint_every: int = Field(default=10_000, ge=1)
    preview_every: int = Field(default=0, ge=0)
    tracker: Tracker = "none"

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InputError(
                "bad_config", "; ".join(_explained(part) for part in error.errors())
            ) from error
        parse_model(self.model)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.space == "latent" and not self.vae:
            raise ValueError("space='latent' needs a vae")
        if len(set(self.ema_decays)) < len(self.ema_decays) or not all(
            0 <= decay < 1 for decay in self.ema_decays
        ):
            raise ValueError(f"ema_decays={self.ema_decays} must differ and lie in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas} must lie in [0, 1)")
        return self

    @property
    def parts(self) -> ModelName:
        """The model's name, taken apart."""
        return parse_model(self.model)

    @classmethod
    def fixed_fields(cls) -> list[str]:
        """Return the options that must not change when a run goes on."""
        return [name for name in cls.model_fields if name not in FREE_TO_CHANGE]

    @property
    def identity(self) -> str:
        """Digest of all that must not change when a run goes on."""
        return digest(self.model_dump(mode="json", exclude=set(FREE_TO_CHANGE)))


def _explained(problem: Any) -> str:
    where = str(problem["loc"][0]) if problem["loc"] else ""  # the option, of lists as well
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}={problem['input']!r}: {message}" if where else message
