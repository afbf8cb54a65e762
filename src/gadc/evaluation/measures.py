"""All measures of a subset, by name, for tables that compare many subsets in many numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gadc.errors import InputError
from gadc.evaluation.distribution import covariance_gap, energy_distance, squared_mean_gap
from gadc.evaluation.duplicates import near_duplicate_share
from gadc.evaluation.frechet import frechet_distance, is_biased
from gadc.evaluation.kernel import kernel_distance, rbf_mmd_squared
from gadc.evaluation.manifold import (
    DENSITY_NEIGHBOURS,
    PRECISION_NEIGHBOURS,
    coverage,
    density,
    precision,
    recall,
)
from gadc.evaluation.sample import Features, Sample, as_pair

Better = Literal["lower", "higher"]

UNDEFINED_CODES = {"bad_bandwidth", "no_spread"}
"""Errors of the measures that say: these vectors, all equal, have no such number."""
BIASED = "biased"


class Undefined(Exception):
    """A measure has no value for these sizes or vectors: no failure, a table's cell stays empty.

    Attributes:
        reason: Why, for the table's note.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Measure:
    """A number that says how well a subset stands for real vectors.

    Attributes:
        name: Short, for tables and files.
        title: For people.
        better: `lower` or `higher`.
        source: Where it is defined.
        function: Takes two `Sample`s, the selected and the real one.
        n_selected_least: It needs this many selected vectors.
        n_real_least: And this many real ones.
        needs_full_rank: It is marked `biased` where one of the covariances is singular.
    """

    name: str
    title: str
    better: Better
    source: str
    function: Callable[[Sample, Sample], float]
    n_selected_least: int = 1
    n_real_least: int = 1
    needs_full_rank: bool = False

    def compute(self, selected: Features, real: Features) -> float:
        """Return the measure.

        Args:
            selected: What is judged [m, d]; a `Sample` to share work between measures.
            real: What it is judged by [n, d]; a `Sample` to share work between subsets as well.

        Raises:
            Undefined: There is no such number for these sizes or vectors.
            InputError: The vectors aren't finite, or differ in width.
        """
        few, many = as_pair(selected, real, ("selected", "real"))
        for sample, what, n_least in (
            (few, "selected", self.n_selected_least),
            (many, "real", self.n_real_least),
        ):
            if sample.n_rows < n_least:
                raise Undefined(f"needs {n_least} {what} vectors, has {sample.n_rows}")
        try:
            return self.function(few, many)
        except InputError as error:
            if error.code in UNDEFINED_CODES:
                raise Undefined(error.message) from error
            raise

    def mark(self, n_selected: int, n_real: int, n_features: int) -> str:
        """Return what a table says beside the number, such as `biased`; mostly nothing."""
        if self.needs_full_rank and is_biased(n_selected, n_real, n_features):
            return BIASED
        return ""


_ALL = (
    Measure(
        "frechet",
        "Fréchet distance",
        "lower",
        "Heusel et al. 2017, equation 6",
        lambda selected, real: frechet_distance(generated=selected, real=real).value,
        n_selected_least=2,
        n_real_least=2,
        needs_full_rank=True,
    ),
    Measure(
        "kid",
        "Kernel distance (KID), unbiased",
        "lower",
        "Binkowski et al. 2018, section 3.1",
        lambda selected, real: kernel_distance(generated=selected, real=real),
        n_selected_least=2,
        n_real_least=2,
    ),
    Measure(
        "mmd-rbf",
        "MMD², Gaussian kernel, unbiased",
        "lower",
        "Gretton et al. 2012, equation 3",
        lambda selected, real: rbf_mmd_squared(generated=selected, real=real),
        n_selected_least=2,
        n_real_least=2,
    ),
    Measure(
        "precision",
        f"Precision, k = {PRECISION_NEIGHBOURS}",
        "higher",
        "Kynkaanniemi et al. 2019, equation 2",
        lambda selected, real: precision(generated=selected, real=real),
        n_real_least=PRECISION_NEIGHBOURS + 1,
    ),
    Measure(
        "recall",
        f"Recall, k = {PRECISION_NEIGHBOURS}",
        "higher",
        "Kynkaanniemi et al. 2019, equation 2",
        lambda selected, real: recall(generated=selected, real=real),
        n_selected_least=PRECISION_NEIGHBOURS + 1,
    ),
    Measure(
        "density",
        f"Density, k = {DENSITY_NEIGHBOURS}",
        "higher",
        "Naeem et al. 2020, equation 3",
        lambda selected, real: density(generated=selected, real=real),
        n_real_least=DENSITY_NEIGHBOURS + 1,
    ),
    Measure(
        "coverage",
        f"Coverage, k = {DENSITY_NEIGHBOURS}",
        "higher",
        "Naeem et al. 2020, equation 4",
        lambda selected, real: coverage(generated=selected, real=real),
        n_real_least=DENSITY_NEIGHBOURS + 1,
    ),
    Measure(
        "energy",
        "Energy distance",
        "lower",
        "Szekely and Rizzo 2013, section 2",
        lambda selected, real: energy_distance(generated=selected, real=real),
    ),
    Measure(
        "mean-gap",
        "Squared distance of the means",
        "lower",
        "|mu_S - mu|²",
        lambda selected, real: squared_mean_gap(generated=selected, real=real),
    ),
    Measure(
        "cov-gap",
        "Relative distance of the covariances",
        "lower",
        "|S_S - S|_F / |S|_F",
        lambda selected, real: covariance_gap(generated=selected, real=real),
        n_selected_least=2,
        n_real_least=2,
    ),
    Measure(
        "duplicates",
        "Share of near duplicates",
        "lower",
        "nearest other selected within 1/3 of the usual distance of real neighbours",
        lambda selected, real: near_duplicate_share(selected=selected, real=real),
        n_selected_least=2,
        n_real_least=2,
    ),
)

MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}
"""In the order in which tables show them."""
