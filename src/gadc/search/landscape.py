"""The transport of a whole data set onto its chosen images, block by block.

With the slack's potential at zero, the potentials f of the m chosen images maximise the concave

    D(f) = mean(f) - epsilon kappa sum_j w_j log(1 + sum_i e^((f_i - C_ij)/epsilon))

(without the 1 where kappa is 1), whose gradient is the error of the row masses. A sum over columns
is a sum over blocks of neighbouring columns, and a block only sees the chosen images near it: the
others would take next to nothing. A sweep over the blocks gives the gradient and the Hessian,
sparse; a step of Newton's method is then a few products with it (conjugate gradients).
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import cg

from gadc.objective.cost import squared_distances
from gadc.objective.threads import Threads
from gadc.search.overlap_sum import OverlapSum
from gadc.search.whole import BLOCK_ROWS, Terms, Whole

# So many chosen images take part in a block at most, those with the lowest cost less potential at
# one of a few columns of it.
N_NEAR = 192
N_PROBES = 32
# Cells in which every chosen image takes part, whatever is nearer there.
N_CELLS = 2
# For each column the chosen images that hold most of it are remembered.
N_HOLDERS = 3
# Summed error of the row masses at which potentials are found; rounding the plan repairs the rest.
TOL = 1e-4
MAX_STEPS = 30
# Where that is not enough, as for clusters far apart, the problem is first solved at so many times
# epsilon, and cooled by a factor of four at a time, each time to a rough error.
HOTTEST = 4.0**5
COOLING = 4.0
ROUGH_TOL = 0.02
# Longest step, as the logarithm of a scaling; one that lowers D is shortened, down to the least.
MAX_LOG_STEP = 4.0
SHORTENING = 0.25
LEAST_LOG_STEP = 1e-3
# Relative rounding of D.
VALUE_ROUNDING = 1e-9
# Two images that share less of the columns than this don't meet in the Hessian, which only steers.
LEAST_OVERLAP = 1e-3
# Blocks whose parts of the Hessian are added at a time: as they are they take more memory.
BLOCKS_AT_A_TIME = 128
# Keeps a row that holds nothing solvable; row masses are about 1/m.
RIDGE = 1e-6
CG_TOL = 0.02
CG_STEPS = 200


@dataclass
class Chosen:
    """The chosen images, each in its place.

    Attributes:
        images: Their rows, int64 [m].
        features: Theirs, centred, float32 [m, d].
        potentials: f, float64 [m].
    """

    images: np.ndarray
    features: torch.Tensor
    potentials: np.ndarray

    def copy(self) -> "Chosen":
        """Return a copy of everything."""
        return Chosen(self.images.copy(), self.features.clone(), self.potentials.copy())


@dataclass(frozen=True)
class Block:
    """Neighbouring columns, and the chosen images that take part in them.

    Attributes:
        rows: The columns' images [c].
        near: Places of chosen images, ascending [q].
    """

    rows: np.ndarray
    near: np.ndarray


@dataclass(frozen=True)
class Sweep:
    """One pass over all columns.

    Attributes:
        value: D(f) / epsilon.
        masses: Of the rows [m].
        costs: `sum_j C_ij pi_ij` of each row [m].
        hessian: Of -D / epsilon by f / epsilon [m, m].
        holders: For each image the chosen ones that hold most of it, as places [n, 3].
        held: Their shares [n, 3].
    """

    value: float
    masses: np.ndarray
    costs: np.ndarray
    hessian: sparse.csr_array
    holders: np.ndarray
    held: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        """What the rows lack [m]."""
        return 1.0 / len(self.masses) - self.masses

    @property
    def error(self) -> float:
        """Summed error of the row masses."""
        return float(np.abs(self.missing).sum())


class Landscape:
    """The transport problem of a whole data set.

    Args:
        whole: The images.
        cells: Their rows, cell by cell.
        terms: The objective's settings.
        threads: Where blocks are worked on.

    Attributes:
        near: Of each cell the chosen images that take part in it, as places, ascending.
        blocks: The cells, and parts of those that are large.
    """

    def __init__(
        self, whole: Whole, cells: list[np.ndarray], terms: Terms, threads: Threads
    ) -> None:
        self._whole, self._cells, self._terms, self._threads = whole, cells, terms, threads
        self.near: list[np.ndarray] = []
        self.blocks: list[Block] = []
        self._probed: np.ndarray | None = None  # [n_cells, m]; None where all are near

    def solve(self, chosen: Chosen) -> Sweep:
        """Find the potentials of `chosen`, starting from those it has.

        Source: Newton's method with inexact steps, Dembo, Eisenstat & Steihaug 1982.
        """
        if len(chosen.images) > N_NEAR:
            probed = self._threads.map(lambda rows: self._probe(rows, chosen), self._cells)
            self._probed = np.stack(probed)
        sweep = self._climb(chosen, self._terms.epsilon, TOL)
        if sweep.error <= TOL:
            return sweep
        there = chosen.potentials
        chosen.potentials = np.zeros_like(there)
        temperature = HOTTEST * self._terms.epsilon
        while temperature > self._terms.epsilon:
            self._climb(chosen, temperature, ROUGH_TOL)
            temperature /= COOLING
        cooled = self._climb(chosen, self._terms.epsilon, TOL)
        if cooled.error <= sweep.error:
            return cooled
        chosen.potentials = there
        return self._climb(chosen, self._terms.epsilon, TOL)

    def _climb(self, chosen: Chosen, epsilon: float, tol: float) -> Sweep:
        """Climb D at `epsilon` from the potentials that `chosen` has."""
        self._look_around(chosen, afresh=True)
        seen_from = chosen.potentials
        sweep = self._sweep(chosen, epsilon)
        for _ in range(MAX_STEPS):
            if sweep.error <= tol:
                break
            has_moved = np.abs(chosen.potentials - seen_from).max() > epsilon
            if has_moved and self._probed is not None:
                self._look_around(chosen, afresh=False)
                seen_from = chosen.potentials
                sweep = self._sweep(chosen, epsilon)
            preconditioner = sparse.diags_array(1.0 / sweep.hessian.diagonal())
            step, _ = cg(
                sweep.hessian, sweep.missing, rtol=CG_TOL, maxiter=CG_STEPS, M=preconditioner
            )
            step = np.clip(step, -MAX_LOG_STEP, MAX_LOG_STEP)
            before, least = chosen.potentials, sweep.value - VALUE_ROUNDING * abs(sweep.value)
            while True:
                chosen.potentials = before + epsilon * step
                sweep = self._sweep(chosen, epsilon)
                if sweep.value >= least or np.abs(step).max() <= LEAST_LOG_STEP:
                    break
                step *= SHORTENING
        return sweep

    def shares(
        self,
        features: torch.Tensor,
        rows: np.ndarray,
        near: np.ndarray,
        chosen: Chosen,
        *,
        epsilon: float | None = None,
    ) -> "Shares":
        """Return how columns are shared.

        Args:
            features: The columns' images, as `Whole.read` returns them [c, d].
            rows: Their numbers [c].
            near: Places of chosen images [q].
            chosen: The chosen images.
            epsilon: Default: the objective's.
        """
        epsilon = epsilon or self._terms.epsilon
        cost = squared_distances(chosen.features[torch.from_numpy(near)], features)
        potentials = torch.from_numpy(chosen.potentials[near]).float()
        logits = (potentials[:, None] - cost) / epsilon
        peak = logits.amax(0)
        if self._terms.has_slack:
            peak.clamp_(min=0.0)
        share = logits.sub_(peak).exp_()
        total = share.sum(0)
        if self._terms.has_slack:
            total += (-peak).exp_()
        share /= total
        masses = torch.from_numpy(self._terms.capacity * self._whole.shares[rows])
        return Shares(cost, share, peak + total.log(), masses)

    def _look_around(self, chosen: Chosen, *, afresh: bool) -> None:
        """Find which chosen images take part where, at the potentials they have.

        Unless it is done afresh, those that took part before stay: else some could come and go.
        """
        m, n_cells = len(chosen.images), len(self._cells)
        is_near = np.ones((n_cells, m), dtype=bool)
        if self._probed is not None:
            margins = self._probed - chosen.potentials.astype(np.float32)
            margins -= np.partition(margins, N_NEAR - 1, axis=1)[:, N_NEAR - 1 : N_NEAR]
            is_near = margins <= 0.0
            # One that is far from everything must find its mass somewhere all the same.
            nearest = np.argpartition(margins, min(N_CELLS, n_cells) - 1, axis=0)[:N_CELLS]
            np.put_along_axis(is_near, nearest, values=True, axis=0)
        if not afresh:
            for known, of_cell in zip(self.near, is_near, strict=True):
                of_cell[known] = True
        self.near = [np.flatnonzero(of_cell) for of_cell in is_near]
        self.blocks = [
            Block(rows[start : start + BLOCK_ROWS], near)
            for rows, near in zip(self._cells, self.near, strict=True)
            for start in range(0, len(rows), BLOCK_ROWS)
        ]

    def _probe(self, rows: np.ndarray, chosen: Chosen) -> np.ndarray:
        """Return the lowest cost of each chosen image at a few columns of a cell, [m]."""
        n_probes = min(N_PROBES, len(rows))
        probes = self._whole.read(rows[np.arange(n_probes) * len(rows) // n_probes])
        return squared_distances(chosen.features, probes).amin(1).numpy()

    def _sweep(self, chosen: Chosen, epsilon: float) -> Sweep:
        n, m = self._whole.n_images, len(chosen.images)
        masses, costs, log_sum = np.zeros(m), np.zeros(m), 0.0
        holders = np.zeros((n, N_HOLDERS), dtype=np.int32)
        held = np.zeros((n, N_HOLDERS), dtype=np.float32)
        overlaps = OverlapSum(m)
        for start in range(0, len(self.blocks), BLOCKS_AT_A_TIME):
            blocks = self.blocks[start : start + BLOCKS_AT_A_TIME]
            parts = self._threads.map(lambda block: self._part(block, chosen, epsilon), blocks)
            for block, part in zip(blocks, parts, strict=True):
                masses[block.near] += part.masses
                costs[block.near] += part.costs
                holders[block.rows], held[block.rows] = part.holders, part.held
                log_sum += part.log_sum
            overlaps.add([block.near for block in blocks], [part.overlap for part in parts])
        hessian = sparse.diags_array(masses + RIDGE / m) - overlaps.total()
        value = float(chosen.potentials.mean()) / epsilon - log_sum
        return Sweep(value, masses, costs, hessian.tocsr(), holders, held)

    def _part(self, block: Block, chosen: Chosen, epsilon: float) -> "_Part":
        found = self.shares(
            self._whole.read(block.rows), block.rows, block.near, chosen, epsilon=epsilon
        )
        log_sum = float(found.log_total.double() @ found.masses)
        share = found.share
        n_kept = min(N_HOLDERS, len(block.near))
        most = share.topk(n_kept, 0)
        holders = np.zeros((len(block.rows), N_HOLDERS), dtype=np.int32)
        held = np.zeros((len(block.rows), N_HOLDERS), dtype=np.float32)
        holders[:, :n_kept] = block.near[most.indices.numpy()].T
        held[:, :n_kept] = most.values.numpy().T

        plan = share * found.masses.float()
        masses = plan.sum(1, dtype=torch.float64).numpy()
        costs = (plan * found.cost).sum(1, dtype=torch.float64).numpy()
        overlap = (plan @ share.T).numpy()  # [q, q]
        norms = np.sqrt(np.diagonal(overlap))
        overlap[overlap <= LEAST_OVERLAP * norms[:, None] * norms] = 0.0
        return _Part(masses, costs, log_sum, overlap, holders, held)


@dataclass(frozen=True)
class Shares:
    """How columns are shared among chosen images.

    Attributes:
        cost: float32 [q, c].
        share: float32 [q, c]; what is missing to one is the slack's.
        log_total: `log(1 + sum_i e^((f_i - C_ij)/epsilon))`, float32 [c].
        masses: kappa w_j, float64 [c].
    """

    cost: torch.Tensor
    share: torch.Tensor
    log_total: torch.Tensor
    masses: torch.Tensor


@dataclass(frozen=True)
class _Part:
    """One block's part of a sweep; the Hessian's as `overlap` [q, q]."""

    masses: np.ndarray
    costs: np.ndarray
    log_sum: float
    overlap: np.ndarray
    holders: np.ndarray
    held: np.ndarray
