"""The transformer of DiT and SiT."""

import pytest
import torch

from gadc.errors import InputError
from gadc.training.embeddings import grid_embedding
from gadc.training.engine import new_network
from gadc.training.throughput import forward_flops
from gadc.training.transformer import SIZES, DiffusionTransformer, Size, TransformerShape

TINY = TransformerShape(
    Size(depth=2, width=32, n_heads=2), patch=2, side=4, channels=3, channels_out=6, n_classes=5
)


def awake(shape: TransformerShape) -> DiffusionTransformer:
    """Return a network whose zero layers are random, so that everything has an effect."""
    network = new_network(shape, seed=0)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=source))
    return network


@pytest.mark.parametrize(
    ("name", "patch", "millions"),
    [
        ("S", 2, 33), ("S", 4, 33), ("S", 8, 33),
        ("B", 2, 130), ("B", 4, 130), ("B", 8, 131),
        ("L", 2, 458), ("L", 4, 458), ("L", 8, 459),
        ("XL", 2, 675), ("XL", 4, 675), ("XL", 8, 676),
    ],
)  # fmt: skip
def test_parameter_count_is_published(name: str, patch: int, millions: int) -> None:
    # Table 4 of the DiT paper, ImageNet's 1000 classes at 256 px, learned variance.
    shape = TransformerShape(SIZES[name], patch, 32, 4, 8, n_classes=1000)
    with torch.device("meta"):
        network = DiffusionTransformer(shape)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


@pytest.mark.parametrize(
    ("name", "gflops"), [("S", 6.06), ("B", 23.01), ("L", 80.71), ("XL", 118.64)]
)
def test_flops_are_published(name: str, gflops: float) -> None:
    # The paper counts a multiplication and an addition as one operation.
    shape = TransformerShape(SIZES[name], 2, 32, 4, 8, n_classes=1000)
    assert forward_flops(shape) / 2e9 == pytest.approx(gflops, rel=0.01)


def test_output_is_zero_at_the_start() -> None:
    network = new_network(TINY, seed=0)
    x = torch.randn(3, 3, 4, 4)
    output = network(x, torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0, 4, 5]))
    assert output.prediction.shape == (3, 6, 4, 4)
    assert not output.prediction.any()
    assert output.projected is None


def test_blocks_are_the_identity_at_the_start() -> None:
    block = new_network(TINY, seed=0).blocks[0]
    tokens = torch.randn(2, 4, 32)
    assert torch.equal(block(tokens, torch.randn(2, 32)), tokens)


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = new_network(TINY, seed=0).state_dict()
    state = torch.random.get_rng_state()
    second = new_network(TINY, seed=0).state_dict()
    other = new_network(TINY, seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["patches.weight"], other["patches.weight"])


def test_patches_come_back_to_their_place() -> None:
    network = new_network(TINY, seed=0)
    image = torch.arange(6 * 16.0).view(1, 6, 4, 4)
    patches = image.view(1, 6, 2, 2, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(1, 4, 24)
    assert torch.equal(network._joined(patches), image)


def test_patch_only_reaches_its_own_token() -> None:
    network = new_network(TINY, seed=0)
    x = torch.zeros(1, 3, 4, 4)
    x[:, :, 0:2, 2:4] = 1.0  # the second patch
    tokens = network.patches(x).flatten(2).transpose(1, 2)
    assert tokens.abs().sum(2).nonzero()[:, 1].tolist() == [1]


def test_grid_tells_row_from_column() -> None:
    grid = grid_embedding(32, 4)
    assert len(grid.unique(dim=0)) == 16
    # Places of one column share the half that encodes the column, those of one row the other.
    by_place = grid.view(4, 4, 2, 16)
    assert (by_place[:, :, 0] == by_place[:1, :, 0]).all()
    assert (by_place[:, :, 1] == by_place[:, :1, 1]).all()


def test_every_condition_has_an_effect() -> None:
    shape = TransformerShape(
        TINY.size, 2, 4, 3, 3, n_classes=5, n_text_tokens=4, text_width=6,
        projection_width=7, projection_depth=1,
    )  # fmt: skip
    network = awake(shape)
    x, text = torch.randn(1, 3, 4, 4), torch.randn(1, 4, 6)
    times, labels = torch.tensor([300.0]), torch.tensor([2])
    output = network(x, times, labels, text)
    assert output.projected is not None
    assert output.projected.shape == (1, 4, 7)
    for changed in (
        network(x, times + 1, labels, text),
        network(x, times, labels + 1, text),
        network(x, times, labels, torch.zeros_like(text)),
        network(x.flip(3), times, labels, text),
    ):
        assert not torch.allclose(changed.prediction, output.prediction, atol=1e-6)


def test_gradient_reaches_every_parameter() -> None:
    shape = TransformerShape(
        TINY.size, 2, 4, 3, 3, n_classes=5, n_text_tokens=4, text_width=6,
        projection_width=7, projection_depth=2,
    )  # fmt: skip
    network = awake(shape)
    output = network(
        torch.randn(6, 3, 4, 4), torch.rand(6) * 1000, torch.arange(6), torch.randn(6, 4, 6)
    )
    assert output.projected is not None
    (output.prediction.square().sum() + output.projected.square().sum()).backward()
    untouched = [
        name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert untouched == []


def test_images_of_a_batch_do_not_mix() -> None:
    network = awake(TINY).double()
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    times, labels = torch.tensor([1.0, 10.0, 100.0, 900.0]), torch.arange(4)
    network.time.double()
    together = network(x, times.double(), labels).prediction
    alone = torch.cat(
        [
            network(x[i : i + 1], times[i : i + 1].double(), labels[i : i + 1]).prediction
            for i in range(4)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_grid_that_does_not_divide_is_an_error() -> None:
    with pytest.raises(InputError, match="multiple") as caught:
        TransformerShape(TINY.size, 8, 12, 3, 3, n_classes=0)
    assert caught.value.code == "patch_grid"


def test_projection_below_the_last_block_is_an_error() -> None:
    with pytest.raises(InputError) as caught:
        TransformerShape(TINY.size, 2, 4, 3, 3, 0, projection_width=4, projection_depth=3)
    assert caught.value.code == "projection_depth"
