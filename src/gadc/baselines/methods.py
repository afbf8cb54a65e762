"""The methods that gadc is compared with, by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gadc.baselines.confidence import confidence
from gadc.baselines.coverage_centric import coverage_centric
from gadc.baselines.dataset_quantization import dataset_quantization
from gadc.baselines.difficulty_interval import difficulty_interval
from gadc.baselines.facility_location import facility_location
from gadc.baselines.herding import herding, herding_deepcore
from gadc.baselines.k_center import k_center
from gadc.baselines.k_medoids import k_medoids
from gadc.baselines.moderate import moderate
from gadc.baselines.moments_confidence import moments_confidence
from gadc.baselines.pool import Pool
from gadc.baselines.uniform import uniform


class Select(Protocol):
    """Select `n_selected` rows of a class; all further parameters of a method have defaults."""

    def __call__(
        self, pool: Pool, n_selected: int, *, generator: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return rows in the order of selection, int64 [n_selected]."""


@dataclass(frozen=True)
class Method:
    """A published method.

    Attributes:
        name: What commands call it.
        title: What tables call it.
        source: Where it was published.
        is_random: Whether the generator matters.
        needs: Which of `Pool`'s optional attributes it can't do without.
        select: The method.
    """

    name: str
    title: str
    source: str
    is_random: bool
    needs: frozenset[str]
    select: Select


def _method(
    name: str,
    title: str,
    select: Select,
    source: str,
    *,
    is_random: bool = False,
    needs: Sequence[str] = (),
) -> Method:
    return Method(name, title, source, is_random, frozenset(needs), select)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _method("random", "Random", uniform, "uniform, without replacement", is_random=True),
        _method(
            "k-center",
            "K-Center greedy",
            k_center,
            "Gonzalez 1985; Sener & Savarese, ICLR 2018",
            is_random=True,
        ),
        _method(
            "herding",
            "Herding",
            herding,
            "Welling, ICML 2009; Rebuffi et al., CVPR 2017 (iCaRL)",
        ),
        _method(
            "herding-deepcore",
            "Herding (DeepCore's argmax)",
            herding_deepcore,
            "Guo et al., DEXA 2022 (DeepCore)",
        ),
        _method(
            "ccs",
            "CCS",
            coverage_centric,
            "Zheng et al., ICLR 2023",
            is_random=True,
            needs=["difficulty"],
        ),
        _method(
            "dq",
            "DQ",
            dataset_quantization,
            "Zhou et al., ICCV 2023",
            is_random=True,
        ),
        _method(
            "d2c",
            "D2C Select",
            difficulty_interval,
            "D2C, CVPR 2026 (arXiv 2507.05914)",
            needs=["difficulty"],
        ),
        _method(
            "k-medoids",
            "k-medoids",
            k_medoids,
            "Kaufman & Rousseeuw 1990; Schubert & Rousseeuw 2021 (FasterPAM)",
        ),
        _method(
            "facility-location",
            "Facility location",
            facility_location,
            "Nemhauser et al. 1978; Mirzasoleiman et al., ICML 2020 (CRAIG)",
        ),
        _method("moderate", "Moderate coreset", moderate, "Xia et al., ICLR 2023"),
        _method(
            "confidence",
            "Confidence only",
            confidence,
            "lowest -log p(c|x)",
            needs=["confidence_loss"],
        ),
        _method(
            "moments-confidence",
            "Moments and confidence",
            moments_confidence,
            "GADC's ablation without transport (arXiv 2606.05883)",
        ),
    )
}
"""Every method by its name, in the order in which tables show them."""
