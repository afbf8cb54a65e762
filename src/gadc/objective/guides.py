"""A few images whose transport problems are solved exactly, to guide those of their neighbours.

What changes when j joins a set is nearly the same as when an image near j joins it: the solution
to start from, the Hessian to step with, and how much the cost changes with the row masses.
"""

from dataclasses import dataclass

import torch

from gadc.objective.cost import column_sums, squared_distances
from gadc.objective.extension import Extension
from gadc.objective.first_order import Sensitivity
from gadc.objective.newton_stack import NewtonStack
from gadc.objective.starts import Starts

# One guide for about this many images, within these bounds.
IMAGES_PER_GUIDE = 64
LEAST_GUIDES, MOST_GUIDES = 12, 16
# Guides are chosen by their costs to so many columns at most.
MOST_COLUMNS = 512
# Guides need not be exact: to this error of the row masses, and so many Newton steps at most.
TOL = 1e-3
MAX_STEPS = 8
# Hessians are taken no further from it, so that they serve others too.
NEAR = 2e-2
# A guide further from its solution has failed; those who follow it are solved on their own.
USABLE_ERROR = 1e-2


class Guides:
    """The guides of a class.

    Args:
        images: The guides, indices [k].
        group: For each image of the class the guide it follows, 0 to k - 1, [n_images].
    """

    def __init__(self, images: torch.Tensor, group: torch.Tensor) -> None:
        self.images, self.group = images, group

    @classmethod
    def among(cls, features: torch.Tensor, cost: torch.Tensor) -> "Guides":
        """Choose guides that lie amid the others: medoids, built one by one.

        Which they are depends neither on the order of the images nor on the axes.

        Args:
            features: [n_images, d], centred.
            cost: [n_images, n].
        """
        n, n_columns = cost.shape
        n_guides = min(n, max(LEAST_GUIDES, min(MOST_GUIDES, n // IMAGES_PER_GUIDE)))
        if n_columns > MOST_COLUMNS:
            by_sum = torch.argsort(column_sums(cost), stable=True)
            cost = cost[:, by_sum[torch.arange(MOST_COLUMNS) * n_columns // MOST_COLUMNS]]
        nearest = torch.full_like(cost[0], torch.inf)
        chosen = torch.zeros(n, dtype=torch.bool, device=cost.device)
        for _ in range(n_guides):
            totals = torch.minimum(cost, nearest).sum(1)
            chosen[totals.masked_fill_(chosen, torch.inf).argmin()] = True
            nearest = torch.minimum(nearest, cost[chosen].amin(0))
        images = torch.nonzero(chosen)[:, 0]
        group = squared_distances(features, features[images]).argmin(1)
        return cls(images, group)

    def beside(self, extension: Extension, pool: torch.Tensor, starts: Starts) -> "Solved":
        """Extend the base by each guide of the candidates `pool` [p] in turn.

        Args:
            extension: The base.
            pool: The candidates.
            starts: Must know the guides' own potentials; learns how the base's move.
        """
        which, place = torch.unique(self.group[pool], return_inverse=True)
        n_base = len(extension.base)
        images = self.images[which]
        start = extension.with_newcomers(starts.potentials(images))
        start[:, :n_base] += starts.shifts(which, extension.base)

        stack, inverse, singular = _climbed(extension, images, start)
        potentials = stack.potentials
        gradient, spread = _sensitivity(stack, inverse, singular)
        shifts = potentials[:, :n_base] - extension.potentials[:n_base]
        starts.remember_shifts(which, extension.base, shifts)
        sensitivity = Sensitivity(_largest(gradient), _largest(spread))
        return Solved(which, place, potentials, inverse, sensitivity)


@dataclass(frozen=True)
class Solved:
    """The solutions of k guides beside one base, for p candidates.

    Attributes:
        which: The guides, [k], ascending.
        place: For each candidate that of its guide, 0 to k - 1, [p].
        potentials: [k, r + 1].
        inverse: Of the negative Hessian by log-scalings, float32 [k, r + 1, r + 1].
        sensitivity: The largest of all guides.
    """

    which: torch.Tensor
    place: torch.Tensor
    potentials: torch.Tensor
    inverse: torch.Tensor
    sensitivity: Sensitivity


def _largest(values: torch.Tensor) -> torch.Tensor:
    """Return the largest number that is one, as float32; infinity if there is none."""
    largest = values.nan_to_num(nan=-torch.inf).amax()
    return torch.where(largest >= 0.0, largest, torch.inf).float()


def _climbed(
    extension: Extension, images: torch.Tensor, potentials: torch.Tensor
) -> tuple[NewtonStack, torch.Tensor, torch.Tensor]:
    """Solve for the guides `images` [k] from `potentials` [k, r + 1].

    Returns:
        The solutions; their inverse Hessians, and bool [k] which of them has none.
    """
    potentials = potentials.clone()
    inverse = extension.plan32.new_empty(len(images), *2 * [potentials.shape[1]])
    singular = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    left = torch.arange(len(images), device=images.device)
    stack = NewtonStack(extension, images, potentials)
    stack.scale_newcomers()
    for _ in range(MAX_STEPS):
        far = ~(stack.error <= NEAR)  # NaN is far
        inverse[left], singular[left] = present, _ = stack.inverse_hessian()
        steps = (present @ stack.missing.float()[:, :, None])[:, :, 0].double()
        stack.move(steps.nan_to_num(nan=0.0))
        potentials[left] = stack.potentials
        # The Hessian of a start that was far off serves nobody else.
        rough = torch.nonzero(~(stack.error <= TOL) | far)[:, 0]
        if not len(rough):
            break
        left = left[rough]
        stack.keep(rough)
    return NewtonStack(extension, images, potentials), inverse, singular


def _sensitivity(
    stack: NewtonStack, inverse: torch.Tensor, singular: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return |q| and sqrt(V) of guides [k], NaN where one has failed."""
    gradient, variance = stack.surplus_moments()
    gradient32 = gradient.float()[:, :, None]
    squares = (gradient32.transpose(1, 2) @ inverse @ gradient32)[:, 0, 0]
    failed = singular | ~(stack.error <= USABLE_ERROR)
    values = torch.stack([squares, variance.float()]).clamp(min=0.0).sqrt()
    size, spread = torch.where(failed, torch.nan, values)
    return size, spread
