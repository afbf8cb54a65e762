"""The YAML file that says what is compared: read once, refused whole if anything in it is odd."""

import difflib
import itertools
import math
from importlib import resources
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gadc.comparison.methods import chosen_methods
from gadc.errors import InputError
from gadc.job.config import CondenseConfig
from gadc.runs.inputs import ImageSettings
from gadc.sampling.config import SampleConfig, check_fit
from gadc.storage import digest
from gadc.training.config import MOST_STEPS, TrainConfig
from gadc.training.transformer import check_patches

MAX_BYTES = 1 << 16
"""A protocol is a page of text; anything larger is another file."""
SUFFIXES = (".yaml", ".yml")
SHIPPED = "protocols"
DIGITS = "digits"
"""A source that needs no files: scikit-learn's scans."""
CLASSIFIER = "classifier"
"""A judge that is trained on the images that are selected from."""
HELD_OUT, POOL = "held-out", "pool"

NOT_SET = {
    "train": {"model": "models says it", "steps": "lengths says it", "seed": "seeds says it"},
    "sample": {"seed": "seeds says it", "classes": "all classes are sampled"},
    "select": {
        **dict.fromkeys(
            ("per_class", "fraction", "budget", "allocate", "allocation", "nested"),
            "per_class says it",
        ),
        "clusters": "images without classes are one class",
        "seed": "seeds says it",
    },
}
"""Options that the runner sets itself, or that would make runs incomparable, and why."""
SECTION_OPTIONS: dict[str, type[BaseModel]] = {
    "train": TrainConfig,
    "sample": SampleConfig,
    "select": CondenseConfig,
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataPart(_Part):
    """Which images.

    Attributes:
        source: Images, as `gadc select` reads them, or `digits`.
        held_out: Images that nothing is selected from: a source, or the share of each class that
            is split off first. None for none.
        encoder: Of the features to select by; see `gadc.features.encoders.load_encoder`.
        weights: See there.
        features: Features of the source computed elsewhere, instead of an encoder.
    """

    source: str
    held_out: str | float | None = None
    encoder: str = "pixels"
    weights: str | None = None
    features: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.held_out, float) and not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out={self.held_out} must be a path, or lie between 0 and 1")
        if self.features is not None and (
            isinstance(self.held_out, float) or self.source == DIGITS
        ):
            raise ValueError("features of all images can't be split; leave out features")
        return self

    def image_settings(self, device: str) -> ImageSettings:
        """Return how images become the features to select by."""
        weights = None if self.weights is None else Path(self.weights)
        return ImageSettings(encoder=self.encoder, weights=weights, device=device)


class AttachPart(_Part):
    """What every method's images are trained with beside their class.

    Attributes:
        text: A T5 encoder, for the caption; None without texts.
        caption: With `{class_name}` where that goes.
        text_tokens: Tokens of a caption.
        visual: A vision transformer, for the alignment; None without.
    """

    text: str | None = None
    caption: str = "{class_name}"
    text_tokens: int = Field(default=16, ge=1)
    visual: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.text is None and self.visual is None:
            raise ValueError("attach needs text, visual or both; leave out attach for none")
        if "{rank}" in self.caption:
            raise ValueError("the rank of an image is the method's; a caption must not tell it")
        return self


class JudgePart(_Part):
    """What generated images are judged by.

    Attributes:
        encoder: `classifier`, trained on the pool; `inception`, `dinov2`, or what
            `gadc.features.encoders.load_encoder` takes.
        weights: A file, for encoders that take one.
        real: `held-out` or `pool` images, or a path: images, features, or ADM's reference file.
        pairwise_images: See `gadc.evaluation.evaluate.EvaluationSettings`.
    """

    encoder: str = CLASSIFIER
    weights: str | None = None
    real: str = HELD_OUT
    pairwise_images: int | None = Field(default=None, ge=2)


class Length(_Part):
    """How long is trained: the same steps for all budgets, or the same passes over the images."""

    steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    epochs: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a length is either steps or epochs")
        return self

    @property
    def title(self) -> str:
        """Return it as tables say it."""
        return f"{self.steps:,} steps" if self.steps is not None else f"{self.epochs:,} epochs"

    def steps_of(self, n_images: int, batch_size: int) -> int:
        """Return the optimiser steps for so many images."""
        if self.steps is not None:
            return self.steps
        return math.ceil((self.epochs or 0) * n_images / batch_size)


class Protocol(_Part):
    """All that is compared, and how.

    Every method is trained, sampled and judged with the same settings and the same seeds; there is
    no place in a protocol to say otherwise.

    Attributes:
        name: Short, for files.
        about: A line for people.
        data: Which images.
        methods: Names as `gadc compare` takes them; `all` for every one. `random` has to be among
            them: differences are taken to it.
        per_class: Budgets.
        seeds: Of random selections, of training and of sampling.
        attach: Encoders of texts and visual targets, computed for every subset; None for none.
        conditions: Instead of that, a file of texts and targets of all images that may be selected.
        models: See `gadc.training.config.parse_model`.
        lengths: How long to train, each in its own table.
        select: Options of `gadc select` for gadc and its ablations.
        train: Options of `gadc train`.
        sample: Options of `gadc sample`.
        judge: What judges.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    about: str = ""
    data: DataPart
    methods: list[str] = Field(min_length=1)
    per_class: list[int] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    attach: AttachPart | None = None
    conditions: str | None = None
    models: list[str] = Field(min_length=1)
    lengths: list[Length] = Field(min_length=1)
    select: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    sample: dict[str, Any] = Field(default_factory=dict)
    judge: JudgePart = JudgePart()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("methods", "per_class", "seeds", "models", "lengths"):
            values = [str(value) for value in getattr(self, name)]
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice")
        if min(self.per_class) < 1:
            raise ValueError(f"per_class={self.per_class} must be at least 1")
        if "all" not in self.methods and "random" not in self.methods:
            raise ValueError("methods must have random, to which the others are compared")
        if self.judge.real == HELD_OUT and self.data.held_out is None:
            raise ValueError("judge.real=held-out needs data.held_out")
        if self.attach is not None and self.conditions is not None:
            raise ValueError("attach computes conditions and a file of them is given; give one")
        if self.attach is not None and self.attach.visual is not None:
            patches = {model.rpartition("/")[2] for model in self.models}
            if len(patches) > 1:
                raise ValueError("visual targets fit one patch size; give models with the same")
        for section, options in SECTION_OPTIONS.items():
            _check_names(section, getattr(self, section), options)
        return self

    def check(self) -> None:
        """Validate methods, models and the options of every section.

        Raises:
            InputError: What the parts themselves complain of.
        """
        chosen_methods(self.methods)
        for model, seed in itertools.product(self.models, self.seeds):
            training = self.train_config(model, steps=1, seed=seed)
            check_fit(self.sample_config(seed=seed), training)
            if training.space == "pixel":
                check_patches(training.resolution_px, training.parts.patch)
        self.select_config()

    def train_config(self, model: str, *, steps: int, seed: int) -> TrainConfig:
        """Return the settings of a training; no method, and no subset, is among what they say."""
        return TrainConfig(**{**self.train, "model": model, "steps": steps, "seed": seed})

    def sample_config(self, *, seed: int) -> SampleConfig:
        """Return the settings of sampling, the same for all methods."""
        return SampleConfig(**{**self.sample, "seed": seed})

    def select_config(self) -> CondenseConfig:
        """Return the settings of gadc and its ablations."""
        return CondenseConfig(**{**self.select, "per_class": self.per_class[0]})

    @property
    def sha256(self) -> str:
        """Digest of everything."""
        return digest(self.model_dump(mode="json"))


def load_protocol(given: str) -> Protocol:
    """Read a protocol.

    Args:
        given: A YAML file, or the name of one that gadc ships.

    Raises:
        InputError: `protocol_missing`, `too_large` or `bad_protocol`.
    """
    text = _read(given)
    try:
        content = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number, or depth, too large
        reason = " ".join(str(error).split())
        raise InputError("bad_protocol", f"{given} is not YAML: {reason}") from error
    if not isinstance(content, dict):
        raise InputError("bad_protocol", f"{given} must hold the options of a protocol")
    try:
        protocol = Protocol(**content)
    except (ValidationError, TypeError) as error:
        problems = (
            [_explained(part) for part in error.errors()]
            if isinstance(error, ValidationError)
            else [str(error)]
        )
        raise InputError("bad_protocol", f"{given}: {'; '.join(problems)}") from error
    protocol.check()
    return protocol


def shipped_protocols() -> list[str]:
    """Return the names of the protocols that gadc ships."""
    folder = resources.files("gadc") / SHIPPED
    return sorted(
        Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(SUFFIXES)
    )


def is_protocol(given: str) -> bool:
    """Tell whether a word names a protocol: a YAML file, or a shipped one if there is no such path.

    Whoever has a folder of images named `digits` means the folder.
    """
    if given.lower().endswith(SUFFIXES):
        return True
    return given in shipped_protocols() and not Path(given).exists()


def _read(given: str) -> str:
    if given in shipped_protocols():
        return (resources.files("gadc") / SHIPPED / f"{given}.yaml").read_text(encoding="utf-8")
    path = Path(given)
    if not path.is_file():
        known = ", ".join(shipped_protocols())
        raise InputError(
            "protocol_missing", f"there is no protocol {given}; give a YAML file, or one of {known}"
        )
    if path.stat().st_size > MAX_BYTES:
        raise InputError("too_large", f"{path} has more than {MAX_BYTES} bytes; no protocol has")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("bad_protocol", f"can't read {path}: {error}") from error


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can make a page of text endless, and without keys twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in known:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is no text, or there twice", key_node.start_mark
                )
            known.add(key)
        return super().construct_mapping(node, deep=deep)


def _check_names(section: str, given: dict[str, Any], options: type[BaseModel]) -> None:
    not_set = NOT_SET[section]
    for name in given:
        if name in not_set:
            raise ValueError(f"{section}.{name} can't be set: {not_set[name]}")
        if name not in options.model_fields:
            known = [field for field in options.model_fields if field not in not_set]
            raise ValueError(unknown_name(f"{section}.{name}", name, known))


def unknown_name(shown: str, name: str, known: list[str]) -> str:
    """Return a complaint about a name, with the nearest known one."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{shown} is not known; {hint}"


PARTS: dict[str, type[BaseModel]] = {
    "data": DataPart,
    "attach": AttachPart,
    "judge": JudgePart,
    "lengths": Length,
}


def _explained(problem: Any) -> str:
    """Return one of pydantic's complaints in words."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        parents = [part for part in problem["loc"] if isinstance(part, str)]
        model = PARTS[parents[0]] if len(parents) > 1 else Protocol
        return unknown_name(where, parents[-1], list(model.model_fields))
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] == "missing":
        return f"{where} is missing"
    return f"{where}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
