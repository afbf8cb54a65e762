"""gadc: choose the few real images a diffusion model needs."""

from gadc.errors import ConvergenceWarning, GadcError, InputError
from gadc.exact import exact_partial_transport
from gadc.objective import Objective, partial_transport

__version__ = "0.1.0"

__all__ = [
    "ConvergenceWarning",
    "GadcError",
    "InputError",
    "Objective",
    "exact_partial_transport",
    "partial_transport",
]
