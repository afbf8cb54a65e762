"""Distance between the moments of a subset and of its target, per feature dimension.

    mean gap = ||mu_S - mu||^2      std gap = ||sigma_S - sigma||^2

with sigma the unbiased standard deviation, 0 for a single image. Of target images with weights w
that sum to one, sigma^2 = sum_j w_j (x_j - mu)^2 / (1 - sum_j w_j^2): with equal weights the usual
k - 1, else unbiased if the weights tell how much an image counts, not how often it was seen.
"""

import torch

# Candidates are screened in blocks of about this many features (1 MB in float32: stays in cache).
BLOCK_ENTRIES = 262_144


class Moments:
    """The target's moments, and the images whose subsets are compared with them.

    Args:
        features: Images to choose from [n, d], float32, centred on the target's mean.
        target: The target's images [k, d], centred likewise.
        weights: Of the target's images, float64 [k], summing to one; default: all are equal.
    """

    def __init__(
        self, features: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None
    ) -> None:
        self.features = features
        k = len(target)
        if weights is None:
            weights = torch.full((k,), 1.0 / k, dtype=torch.float64, device=target.device)
        # Two passes over blocks: a float64 copy of the whole target is never held.
        block = max(1, BLOCK_ENTRIES // target.shape[1])
        blocks = list(zip(target.split(block), weights.split(block), strict=True))
        self.mean = torch.zeros(target.shape[1], dtype=torch.float64, device=target.device)
        for rows, shares in blocks:
            self.mean += shares @ rows.double()
        self.std = torch.zeros_like(self.mean)
        if k > 1:
            for rows, shares in blocks:
                self.std += shares @ (rows.double() - self.mean).square_()
            # 1 - sum of w^2, without its cancellation where one weight is nearly all.
            self.std.div_((weights * (1.0 - weights)).sum()).sqrt_()

    def gaps(self, subsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and std gaps of `subsets` [b, m], float64 [b] each."""
        mean_gaps, std_gaps = [], []
        block = max(1, BLOCK_ENTRIES // (subsets.shape[1] * self.features.shape[1]))
        for indices in subsets.split(block):
            chosen = self.features[indices].double()  # [b, m, d]
            std = chosen.std(1) if subsets.shape[1] > 1 else torch.zeros_like(chosen[:, 0])
            mean_gaps.append((chosen.mean(1) - self.mean).square().sum(1))
            std_gaps.append((std - self.std).square().sum(1))
        return torch.cat(mean_gaps), torch.cat(std_gaps)

    def gaps_with(
        self, base: torch.Tensor, pool: torch.Tensor, *, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gaps of `base + [j]` for every j in `pool`, float64 [len(pool)] each.

        Last, how large the numbers are of which they are differences: |mu_B - mu| + |sigma|.

        With mu_B and V the base's mean and its summed squares about it over m - 1,

            mu_S = mu_B + (x_j - mu_B) / m,    sigma_S^2 = V + (x_j - mu_B)^2 / m,

        so this costs O(len(pool) d) whatever the base's size, and variances don't cancel.

        Args:
            base: Indices [m - 1], possibly none.
            pool: Indices [p].
            dtype: Of the arithmetic: float64 for values, float32 to screen.

        Source: Welford 1962.
        """
        m = len(base) + 1
        chosen = self.features[base].double()  # [m - 1, d]
        centre = chosen.mean(0) if m > 1 else torch.zeros_like(self.mean)
        variance = (chosen - centre).square_().mean(0).to(dtype)
        gap, std = centre - self.mean, self.std
        reach = torch.linalg.vector_norm(gap) + torch.linalg.vector_norm(std)
        gap, centre, std = gap.to(dtype), centre.to(dtype), std.to(dtype)
        mean_gaps, std_gaps = [], []
        for indices in pool.split(max(1, BLOCK_ENTRIES // len(std))):
            change = self.features.index_select(0, indices).to(dtype).sub_(centre)  # [p, d]
            mean_gaps.append(torch.add(gap, change, alpha=1.0 / m).square_().sum(1))
            if m == 1:
                std_gaps.append(std.square().sum().expand(len(indices)))
                continue
            spread = torch.addcmul(variance, change, change, value=1.0 / m).sqrt_()
            std_gaps.append(spread.sub_(std).square_().sum(1))
        return torch.cat(mean_gaps).double(), torch.cat(std_gaps).double(), reach
