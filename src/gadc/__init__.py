"""gadc: choose the few real images a diffusion model needs.

from pathlib import Path
import gadc

features = gadc.load_features("features")            # what `gadc features` wrote, or a file
config = gadc.CondenseConfig(per_class=10)           # how many, and by which objective
subset = gadc.condense(features, config, out=Path("result"))
subset.paths, subset.weight                          # the images, and how many each stands for
selector = gadc.GeometryAwareSelector(n_per_class=10).fit(X, y)   # the same for arrays
X[selector.indices_]
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gadc.condense import CondenseConfig, condense
    from gadc.errors import (
        ConvergenceWarning,
        GadcError,
        InputError,
        MissingExtraError,
        RunError,
    )
    from gadc.exact import exact_partial_transport
    from gadc.features.store import FeatureSet, load_features
    from gadc.objective import Objective, PartialTransport, partial_transport
    from gadc.peer_selectors import (
        CCSSelector,
        ConfidenceSelector,
        DatasetQuantizationSelector,
        DifficultyIntervalSelector,
        FacilityLocationSelector,
        HerdingSelector,
        KCenterSelector,
        KMedoidsSelector,
        ModerateSelector,
        RandomSelector,
    )
    from gadc.selector import GeometryAwareSelector
    from gadc.subset import Subset

__version__ = "0.1.0"

__all__ = [
    "CCSSelector",
    "CondenseConfig",
    "ConfidenceSelector",
    "ConvergenceWarning",
    "DatasetQuantizationSelector",
    "DifficultyIntervalSelector",
    "FacilityLocationSelector",
    "FeatureSet",
    "GadcError",
    "GeometryAwareSelector",
    "HerdingSelector",
    "InputError",
    "KCenterSelector",
    "KMedoidsSelector",
    "MissingExtraError",
    "ModerateSelector",
    "Objective",
    "PartialTransport",
    "RandomSelector",
    "RunError",
    "Subset",
    "condense",
    "exact_partial_transport",
    "load_features",
    "partial_transport",
]

# Names are imported when they are first used: `gadc --help` then needs no torch (1.7 s).
_HOMES = {
    "CCSSelector": "gadc.peer_selectors",
    "CondenseConfig": "gadc.condense",
    "ConfidenceSelector": "gadc.peer_selectors",
    "ConvergenceWarning": "gadc.errors",
    "DatasetQuantizationSelector": "gadc.peer_selectors",
    "DifficultyIntervalSelector": "gadc.peer_selectors",
    "FacilityLocationSelector": "gadc.peer_selectors",
    "FeatureSet": "gadc.features.store",
    "GadcError": "gadc.errors",
    "GeometryAwareSelector": "gadc.selector",
    "HerdingSelector": "gadc.peer_selectors",
    "InputError": "gadc.errors",
    "KCenterSelector": "gadc.peer_selectors",
    "KMedoidsSelector": "gadc.peer_selectors",
    "MissingExtraError": "gadc.errors",
    "ModerateSelector": "gadc.peer_selectors",
    "Objective": "gadc.objective",
    "PartialTransport": "gadc.objective",
    "RandomSelector": "gadc.peer_selectors",
    "RunError": "gadc.errors",
    "Subset": "gadc.subset",
    "condense": "gadc.condense",
    "exact_partial_transport": "gadc.exact",
    "load_features": "gadc.features.store",
    "partial_transport": "gadc.objective",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


class _Package(types.ModuleType):
    """Keeps `gadc.condense` the function, also once the module of that name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
