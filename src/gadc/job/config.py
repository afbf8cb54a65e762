"""What a selection is asked for, validated once."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gadc.errors import InputError
from gadc.job.budget import Allocate, Shortfall
from gadc.objective.total import DEFAULT_MEAN_WEIGHT, DEFAULT_STD_WEIGHT, Units
from gadc.objective.transport import DEFAULT_CAPACITY, DEFAULT_RELATIVE_EPSILON
from gadc.per_class.selection import ClassSettings, Partition
from gadc.search import Nested, Start
from gadc.search.multistart import DEFAULT_PATIENCE, DEFAULT_START
from gadc.search.nested import check_nested

Dedup = Literal["first", "keep"]


class CondenseConfig(BaseModel):
    """What to select; every option of `gadc select` that changes the result.

    Exactly one of `per_class`, `fraction` and `budget` is given, or `allocation` alone.

    Attributes:
        per_class: This many images of each class.
        fraction: This part of all images, above 0 and at most 1.
        budget: This many images in all.
        allocate: How `fraction` or `budget` is divided among classes; see `allocate_budget`.
            Default: `equal` for the classes of a `budget`; `proportional` for a `fraction` and
            for clusters.
        allocation: With `allocate="file"`: share of each class by name, 0 for those left out; the
            very counts if neither `fraction` nor `budget` is given.
        shortfall: What happens where a class is smaller than its share; see `allocate_budget`.
        start: See `gadc.search.search`; so are `max_swaps` and `patience`.
        max_swaps: Most exchanges per start; None for as many as help.
        patience: Failed attempts in a row to leave the best local optimum.
        proof: Whether every exchange is ruled out or solved at the end.
        nested: Sizes of smaller subsets of each class, ascending, or `halves` for its number
            halved again and again, down to 10 at least. The order of selection then begins with
            them: its first images are a good smaller subset. Sizes that a class does not reach
            are left out.
        partition: Which classes are searched in cells, without a cost matrix: those of more than
            20,000 images (`auto`), all (`always`) or none (`never`); see
            `gadc.per_class.selection.is_partitioned`.
        capacity: See `gadc.Objective`; so are all weights and `units`.
        epsilon: See there.
        mean_weight: See there.
        std_weight: See there.
        confidence_weight: See there; None for 0.03 where class probabilities are at hand, else 0.
        units: See there.
        probe: Where labelled features have no class probabilities, a linear probe that has not
            seen the image estimates them; without it the confidence term is then off.
        clusters: Images without labels are divided into this many clusters, which take the place
            of classes.
        dedup: `first`: of exact duplicates (equal SHA-256; equal features where that is not known)
            only the first by id may be selected, in all classes together. `keep`: all may.
        seed: For all that is random: attempts to leave a local optimum, and clusters.

    Raises:
        InputError: `bad_config`, with every field that can't be used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    per_class: int | None = Field(default=None, ge=1)
    fraction: float | None = Field(default=None, gt=0.0, le=1.0)
    budget: int | None = Field(default=None, ge=1)
    allocate: Allocate | None = None
    allocation: dict[str, int] | None = None
    shortfall: Shortfall = "take-all"
    start: Start = DEFAULT_START
    max_swaps: int | None = Field(default=None, ge=0)
    patience: int = Field(default=DEFAULT_PATIENCE, ge=0)
    proof: bool = True
    nested: Nested | None = None
    partition: Partition = "auto"
    capacity: float = Field(default=DEFAULT_CAPACITY, ge=1.0)
    epsilon: float = Field(default=DEFAULT_RELATIVE_EPSILON, gt=0.0)
    mean_weight: float = Field(default=DEFAULT_MEAN_WEIGHT, ge=0.0)
    std_weight: float = Field(default=DEFAULT_STD_WEIGHT, ge=0.0)
    confidence_weight: float | None = Field(default=None, ge=0.0)
    units: Units = "relative"
    probe: bool = True
    clusters: int | None = Field(default=None, ge=1)
    dedup: Dedup = "first"
    seed: int = 0

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InputError(
                "bad_config", "; ".join(_explained(part) for part in error.errors())
            ) from error

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        given = [
            name for name in ("per_class", "fraction", "budget") if getattr(self, name) is not None
        ]
        if len(given) > 1 or not (given or self.allocation is not None):
            what = " and ".join(given) or "none"
            raise ValueError(
                f"give exactly one of per_class, fraction and budget, or an allocation alone; "
                f"got {what}"
            )
        if self.per_class is not None and (self.allocate or self.allocation is not None):
            raise ValueError("per_class gives each class the same; leave out allocate")
        if (self.allocation is not None) != (self.allocate == "file"):
            raise ValueError("allocate='file' and an allocation go together; give both or neither")
        if self.allocation is not None and self.clusters is not None:
            raise ValueError("clusters have no names before they are found; leave out allocation")
        check_nested(self.nested, self.per_class)
        if self.partition == "always" and self.nested is not None:
            raise ValueError("a search in cells can't nest subsets; leave out partition or nested")
        return self

    @property
    def class_settings(self) -> ClassSettings:
        """What the selection from every class has in common."""
        names = ClassSettings.__dataclass_fields__
        return ClassSettings(**{name: getattr(self, name) for name in names})

    @property
    def allocation_rule(self) -> Allocate:
        """`allocate`, or its default."""
        if self.allocate is not None:
            return self.allocate
        is_mixture = self.fraction is not None or self.clusters is not None
        return "proportional" if is_mixture else "equal"


def _explained(part: Any) -> str:
    """Return one of pydantic's complaints in words."""
    name = ".".join(str(place) for place in part["loc"])
    if part["type"] == "value_error":
        return str(part["ctx"]["error"])
    if part["type"] == "extra_forbidden":
        known = ", ".join(CondenseConfig.model_fields)
        return f"{name} is no option of a selection; there are {known}"
    return f"{name}={part['input']!r}: {part['msg'][0].lower()}{part['msg'][1:]}"
