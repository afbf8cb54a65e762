"""A few images whose transport problems are solved exactly, to guide those of their neighbours.

What changes when j joins a set is nearly the same as when an image near j joins it: the solution
to start from, the Hessian to step with, and the slope of the cost by the row masses.
"""

import dataclasses
import functools
from dataclasses import dataclass

import torch

from gadc.objective.cost import squared_distances
from gadc.objective.extension import Extension
from gadc.objective.newton_stack import NewtonStack
from gadc.objective.threads import Threads

# One guide for about this many images, within these bounds.
IMAGES_PER_GUIDE = 32
LEAST_GUIDES, MOST_GUIDES = 16, 48
# Guides need not be exact: to this error of the row masses, in at most so many steps.
TOL = 2e-3
MAX_STEPS = 6
# Guides solved together: few enough that several threads have some.
GUIDES_TOGETHER = 24
# A guide further from its solution has failed; those who follow it are solved on their own.
USABLE_ERROR = 1e-2


class Guides:
    """The guides of a class, and what they have learnt.

    Args:
        images: The guides, indices [k].
        group: For each image of the class the guide it follows, 0 to k - 1, [n_images].
    """

    def __init__(self, images: torch.Tensor, group: torch.Tensor) -> None:
        self.images, self.group = images, group
        # Shift of each image's potential when the guide joined a set that held the image, and the
        # guide's own potential then; NaN: never. It saves time and decides nothing.
        self._shift = torch.full(
            (len(images), len(group)), torch.nan, dtype=torch.float32, device=images.device
        )

    @classmethod
    def among(cls, features: torch.Tensor) -> "Guides":
        """Choose guides for the images `features` [n_images, d]: any will do, so evenly spread."""
        n = len(features)
        n_guides = min(n, max(LEAST_GUIDES, min(MOST_GUIDES, n // IMAGES_PER_GUIDE)))
        images = torch.arange(n_guides, device=features.device) * n // n_guides
        group = squared_distances(features, features[images]).argmin(1)
        return cls(images, group)

    def solve(self, extension: Extension, newcomers: torch.Tensor, threads: Threads) -> "Solved":
        """Extend the base by each guide in turn.

        Args:
            extension: The base.
            newcomers: Potentials of the guides' own rows to start with, [k].
            threads: Where blocks of guides are worked on.
        """
        n_base = len(extension.base)
        starts = extension.with_newcomers(newcomers)
        shift = self._shift[:, extension.base].double()
        starts[:, :n_base] += torch.where(shift.isfinite(), shift, 0.0)
        _ = extension.pairs  # computed once, before threads ask for them
        block = GUIDES_TOGETHER if newcomers.device.type == "cpu" else len(newcomers)
        blocks = zip(self.images.split(block), starts.split(block), strict=True)
        parts = threads.map(lambda images_starts: _solved(extension, *images_starts), blocks)
        solved = Solved.joined(parts)
        shift = solved.potentials[:, :n_base] - extension.potentials[:n_base]
        self._shift[:, extension.base] = shift.float()
        return solved


@dataclass(frozen=True)
class Solved:
    """The guides' solutions beside one base.

    Attributes:
        potentials: [k, r + 1].
        inverse: Of the negative Hessian by log-scalings, float32 [k, r + 1, r + 1].
        slope: Change of the transport cost by that of the row masses, shifted to be as small as
            can be (the masses' errors sum to zero), float32 [k, r + 1]; NaN where a guide failed.
    """

    potentials: torch.Tensor
    inverse: torch.Tensor
    slope: torch.Tensor

    @classmethod
    def joined(cls, parts: "list[Solved]") -> "Solved":
        """Return the solutions of all `parts`, in their order."""
        names = (field.name for field in dataclasses.fields(cls))
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    @functools.cached_property
    def steepest(self) -> torch.Tensor:
        """The largest magnitude of all slopes, float32, a scalar."""
        return self.slope.abs().nan_to_num(nan=0.0).amax()


def _solved(extension: Extension, images: torch.Tensor, potentials: torch.Tensor) -> Solved:
    """Solve for the guides `images` [k] from `potentials` [k, r + 1]."""
    stack = NewtonStack(extension, images, potentials)
    left = torch.arange(len(potentials), device=potentials.device)
    for n_steps in range(1 + MAX_STEPS):
        if n_steps:
            stack.step()
        rough = ~(stack.error <= TOL)  # NaN is rough
        potentials[left] = stack.potentials
        if not rough.any():
            break
        left = left[rough]
        stack.keep(rough)
    stack = NewtonStack(extension, images, potentials)
    factor, info = torch.linalg.cholesky_ex(stack.negative_hessian())
    inverse = torch.cholesky_inverse(factor)
    slope = (inverse @ stack.cost_gradient().float()[:, :, None])[:, :, 0]
    middle = (slope.amax(1) + slope.amin(1)) / 2
    failed = (info != 0) | ~(stack.error <= USABLE_ERROR)
    slope = torch.where(failed[:, None], torch.nan, slope - middle[:, None])
    return Solved(stack.potentials, inverse, slope)
