"""The transformer of DiT and SiT, with class, text and alignment.

Peebles & Xie: Scalable Diffusion Models with Transformers. ICCV 2023, arXiv:2212.09748.
Ma et al.: SiT, arXiv:2401.08740. Yu et al.: Representation Alignment for Generation,
arXiv:2410.06940, for the projection head.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from gadc.errors import InputError
from gadc.training.embeddings import INITIAL_STD, TextEmbedding, TimeEmbedding, grid_embedding

MLP_RATIO = 4
NORM_EPS = 1e-6
PROJECTOR_WIDTH = 2048
"""Hidden width of the projection head; from the paper on alignment, as is its depth of 3."""


@dataclass(frozen=True)
class Size:
    """Dimensions of a transformer."""

    depth: int
    width: int
    n_heads: int


SIZES = {
    "T": Size(depth=4, width=128, n_heads=4),
    "S": Size(depth=12, width=384, n_heads=6),
    "B": Size(depth=12, width=768, n_heads=12),
    "L": Size(depth=24, width=1024, n_heads=16),
    "XL": Size(depth=28, width=1152, n_heads=16),
}
"""Table 1 of the DiT paper; T is gadc's own, for small images and tests."""


def check_patches(side: int, patch: int) -> None:
    """Raise an InputError if an input can't be divided into patches."""
    if side % patch:
        raise InputError(
            "patch_grid",
            f"an input of {side} x {side} can't be divided into patches of {patch}; choose a "
            "resolution that is a multiple, or another patch size",
        )


@dataclass(frozen=True)
class TransformerShape:
    """Everything that fixes the network's parameters.

    Attributes:
        size: Depth, width and heads.
        patch: Side of a patch in pixels of the input.
        side: Height and width of the input; a multiple of `patch`.
        channels: Channels of the input.
        channels_out: Channels of the prediction; twice `channels` with a learned variance.
        n_classes: 0 for a model without classes.
        n_text_tokens: 0 for a model without text.
        text_width: Width of a text token.
        projection_width: Width of the alignment's targets; 0 for a model without alignment.
        projection_depth: The block after which tokens are aligned, counted from 1.
    """

    size: Size
    patch: int
    side: int
    channels: int
    channels_out: int
    n_classes: int
    n_text_tokens: int = 0
    text_width: int = 0
    projection_width: int = 0
    projection_depth: int = 8

    def __post_init__(self) -> None:
        check_patches(self.side, self.patch)
        if self.projection_width and not 1 <= self.projection_depth <= self.size.depth:
            raise InputError(
                "projection_depth",
                f"projection_depth={self.projection_depth} must lie between 1 and "
                f"{self.size.depth}, the blocks of the model",
            )

    @property
    def n_tokens(self) -> int:
        """Patches of an input."""
        return (self.side // self.patch) ** 2


class TransformerOutput(NamedTuple):
    """What the network says about a batch.

    Attributes:
        prediction: [b, channels_out, side, side].
        projected: Tokens [b, n_tokens, projection_width] to be aligned; None without a head.
    """

    prediction: torch.Tensor
    projected: torch.Tensor | None


class Block(nn.Module):
    """Attention and a two-layer network, both shifted, scaled and gated by the condition.

    The modulation begins at zero (adaLN-zero), so a new block is the identity.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=NORM_EPS)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(MLP_RATIO * width, width),
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return tokens [b, n, width] for tokens and a condition [b, width]."""
        parts = self.modulation(condition)[:, None].chunk(6, dim=2)  # six of [b, 1, width]
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        tokens = tokens + gate1 * self._attend(self.norm1(tokens) * (1 + scale1) + shift1)
        result: torch.Tensor = tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)
        return result

    def _attend(self, tokens: torch.Tensor) -> torch.Tensor:
        b, n, width = tokens.shape
        heads = self.qkv(tokens).view(b, n, 3, self.n_heads, width // self.n_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # three of [b, heads, n, width / heads]
        mixed = functional.scaled_dot_product_attention(q, k, v)
        attended: torch.Tensor = self.attended(mixed.transpose(1, 2).reshape(b, n, width))
        return attended


class FinalLayer(nn.Module):
    """From tokens to patches of the prediction; zero at the beginning."""

    def __init__(self, width: int, n_out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=NORM_EPS)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, n_out)

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return [b, n, n_out]."""
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=2)
        patches: torch.Tensor = self.linear(self.norm(tokens) * (1 + scale) + shift)
        return patches


class DiffusionTransformer(nn.Module):
    """Predicts noise (and its variance) or velocity from a noisy image, a time and a condition."""

    grid: torch.Tensor

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.size.width
        self.patches = nn.Conv2d(shape.channels, width, shape.patch, stride=shape.patch)
        grid = grid_embedding(width, shape.side // shape.patch)
        self.register_buffer("grid", grid, persistent=False)
        self.time = TimeEmbedding(width)
        # The last row stands for "no class".
        self.classes = nn.Embedding(shape.n_classes + 1, width) if shape.n_classes else None
        self.text = (
            TextEmbedding(shape.n_text_tokens, shape.text_width, width)
            if shape.n_text_tokens
            else None
        )
        self.blocks = nn.ModuleList(
            Block(width, shape.size.n_heads) for _ in range(shape.size.depth)
        )
        self.final = FinalLayer(width, shape.patch**2 * shape.channels_out)
        self.projector = (
            nn.Sequential(
                nn.Linear(width, PROJECTOR_WIDTH),
                nn.SiLU(),
                nn.Linear(PROJECTOR_WIDTH, PROJECTOR_WIDTH),
                nn.SiLU(),
                nn.Linear(PROJECTOR_WIDTH, shape.projection_width),
            )
            if shape.projection_width
            else None
        )
        self._initialise()

    def _initialise(self) -> None:
        """Xavier everywhere, 0.02 for embeddings, zero for modulation and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patches.weight.flatten(1))
        nn.init.zeros_(self.patches.bias)  # type: ignore[arg-type]
        for layer in (self.time.network[0], self.time.network[2]):
            nn.init.normal_(layer.weight, std=INITIAL_STD)  # type: ignore[arg-type]
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=INITIAL_STD)
        if self.text is not None:
            nn.init.xavier_uniform_(self.text.join.weight.flatten(1))
            nn.init.zeros_(self.text.join.bias)  # type: ignore[arg-type]
        for part in (*self.blocks, self.final):
            modulation = part.modulation[1]
            nn.init.zeros_(modulation.weight)
            nn.init.zeros_(modulation.bias)
        nn.init.zeros_(self.final.linear.weight)
        nn.init.zeros_(self.final.linear.bias)

    @property
    def null_label(self) -> int:
        """The number that stands for "no class"."""
        return self.shape.n_classes

    def forward(
        self,
        x: torch.Tensor,
        times: torch.Tensor,
        labels: torch.Tensor | None = None,
        text: torch.Tensor | None = None,
    ) -> TransformerOutput:
        """Return the prediction for a batch.

        Args:
            x: Noisy images [b, channels, side, side].
            times: From 0 (clean) to 1000 (noise), float [b].
            labels: Int64 [b], `null_label` for none; needed if the model has classes.
            text: Token embeddings [b, n_text_tokens, text_width], zeros for none; needed if the
                model has text.
        """
        condition = self.time(times)
        if self.classes is not None:
            condition = condition + self.classes(labels)
        if self.text is not None:
            condition = condition + self.text(text)
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.grid  # [b, n, width]
        projected = None
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, condition)
            if self.projector is not None and number == self.shape.projection_depth:
                projected = self.projector(tokens)
        patches = self.final(tokens, condition)
        return TransformerOutput(self._joined(patches), projected)

    def _joined(self, patches: torch.Tensor) -> torch.Tensor:
        """Put patches [b, n, patch² · c] together to [b, c, side, side]."""
        shape = self.shape
        count = shape.side // shape.patch
        grid = patches.view(-1, count, count, shape.patch, shape.patch, shape.channels_out)
        image = torch.einsum("bhwpqc->bchpwq", grid)
        return image.reshape(-1, shape.channels_out, shape.side, shape.side)
