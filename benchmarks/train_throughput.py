"""Images per second of gadc's training, beside a plain loop that encodes at every step.

    python benchmarks/train_throughput.py --model SiT-L/2 --batch-size 128       # a GPU
    python benchmarks/train_throughput.py --model SiT-T/2 --batch-size 8 --resolution-px 64 \
        --vae-channels 16 32 --steps 5                                           # a look on a CPU

The plain loop is what the research code does: every image goes through the VAE in every step, in
float32 (TF32 on tensor cores), one optimiser call per parameter group and one average per
parameter. gadc's takes latents that were encoded once, in the precision asked for. Both train the
same network on the same images, one after the other in one process; each first does some steps
that are not counted. The VAE has random weights: they don't change how long it takes.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from gadc.training.config import TrainConfig
from gadc.training.engine import Engine, new_network
from gadc.training.latents import TrainingInputs
from gadc.training.machine import open_accelerator
from gadc.training.spaces import LatentSpace, to_signed
from gadc.training.stream import StreamSettings, batches
from gadc.training.throughput import peak_flops, training_flops
from gadc.training.transformer import TransformerShape

N_CLASSES = 1000
LATENT_CHANNELS = 4
SD_VAE_CHANNELS = (128, 256, 512, 512)
"""Of `stabilityai/sd-vae-ft-ema`."""


def new_vae(channels: list[int]) -> AutoencoderKL:
    """Return a VAE with random weights."""
    n = len(channels)
    return AutoencoderKL(
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        layers_per_block=2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=min(32, channels[0]),
    )


def seconds_per_step(step: Callable[[int], None], n_warm: int, n_steps: int) -> float:
    """Return the mean time of a step, after some that don't count."""
    for number in range(n_warm):
        step(number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    for number in range(n_warm, n_warm + n_steps):
        step(number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / n_steps


def plain_loop(
    pixels: torch.Tensor, config: TrainConfig, shape: TransformerShape, space: LatentSpace
) -> Callable[[int], None]:
    """Return a step of the plain loop."""
    device = space.device
    network = new_network(shape, seed=0).to(device)
    average = new_network(shape, seed=0).to(device).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0)
    process = config.parts.process
    source = torch.Generator().manual_seed(0)

    def step(_number: int) -> None:
        rows = torch.randint(len(pixels), (config.batch_size,), generator=source)
        shown = pixels[rows].to(device)
        with torch.no_grad():
            latent = space.vae.encode(shown).latent_dist.sample() * space.scale
        labels = torch.randint(N_CLASSES, (config.batch_size,), device=device)
        uniform = torch.rand(config.batch_size, device=device, dtype=torch.float64)
        loss = process.loss(
            lambda x, times: network(x, times, labels).prediction,
            latent,
            torch.randn_like(latent),
            uniform,
        )
        optimiser.zero_grad()
        loss.total.mean().backward()
        optimiser.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
                mine.mul_(0.9999).add_(theirs, alpha=1 - 0.9999)

    return step


def gadc_loop(
    inputs: TrainingInputs, config: TrainConfig, shape: TransformerShape, folder: Path, n_steps: int
) -> Callable[[int], None]:
    """Return a step of gadc's loop, with the noise of its stream."""
    accelerator = open_accelerator(config, folder, "auto")
    inputs.to(accelerator.device)
    labels = torch.from_numpy(np.arange(inputs.n_images) % N_CLASSES)
    engine = Engine(accelerator, config, shape, inputs, labels, None)
    stream = StreamSettings(
        seed=0,
        n_images=inputs.n_images,
        batch_size=config.batch_size,
        shape=(shape.channels, shape.side, shape.side),
        flip=True,
        drop_probability=config.drop_probability,
        has_posterior=True,
    )
    drawn = batches(stream, 0, n_steps)

    def step(_number: int) -> None:
        engine.step(*next(drawn))

    return step


def encode(pixels: torch.Tensor, space: LatentSpace) -> tuple[TrainingInputs, float]:
    """Return latents in both orientations, and the seconds that took."""
    started = time.perf_counter()
    parts = [
        [space.posterior(shown) for shown in (block, block.flip(3))] for block in pixels.split(16)
    ]
    mean = torch.cat([torch.stack([m for m, _ in both], 1) for both in parts]).cpu()
    std = torch.cat([torch.stack([s for _, s in both], 1) for both in parts]).cpu()
    return TrainingInputs(mean.clone(), std.clone()), time.perf_counter() - started


def main() -> None:
    """Time both loops."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="SiT-L/2")
    parser.add_argument("--resolution-px", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--n-images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm", type=int, default=5)
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--vae-channels", type=int, nargs="+", default=list(SD_VAE_CHANNELS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    config = TrainConfig(
        model=given.model,
        resolution_px=given.resolution_px,
        batch_size=given.batch_size,
        precision=given.precision,
        compile=given.compile,
        grad_clip=None,
    )
    vae = new_vae(given.vae_channels).to(device).eval().requires_grad_(False)
    space = LatentSpace(vae, given.resolution_px, fingerprint="random")
    parts = config.parts
    shape = TransformerShape(
        size=parts.size,
        patch=parts.patch,
        side=space.side,
        channels=space.channels,
        channels_out=space.channels * parts.process.prediction_factor,
        n_classes=N_CLASSES,
    )
    levels = np.random.default_rng(0).integers(
        0, 256, (given.n_images, 3, given.resolution_px, given.resolution_px), dtype=np.uint8
    )
    pixels = to_signed(levels)
    inputs, encoding_seconds = encode(pixels, space)
    seconds = {
        "encode every step": seconds_per_step(
            plain_loop(pixels, config, shape, space), given.warm, given.steps
        )
    }
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        n_steps = given.warm + given.steps
        step = gadc_loop(inputs, config, shape, Path(folder), n_steps)
        seconds["gadc, cached latents"] = seconds_per_step(step, given.warm, given.steps)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    report(given, shape, seconds, encoding_seconds, device, machine or "CPU")


def report(
    given: argparse.Namespace,
    shape: TransformerShape,
    seconds: dict[str, float],
    encoding_seconds: float,
    device: torch.device,
    machine: str,
) -> None:
    """Print a table, and write the same as JSON."""
    rows = []
    for name, each in seconds.items():
        rate = given.batch_size / each
        peak = peak_flops(device, given.precision if name.startswith("gadc") else "no")
        flops = rate * training_flops(shape)
        rows.append(
            {
                "loop": name,
                "images_per_second": rate,
                "model_flops_per_second": flops,
                "share_of_peak": None if peak is None else flops / peak,
            }
        )
    ratio = rows[1]["images_per_second"] / rows[0]["images_per_second"]
    print(f"{given.model}, {given.resolution_px} px, batch {given.batch_size}, on {machine}")
    print(f"{'loop':22}{'images/s':>12}{'model TFLOP/s':>16}{'of peak':>10}")
    for row in rows:
        share = "unknown" if row["share_of_peak"] is None else f"{row['share_of_peak']:.1%}"
        tera = row["model_flops_per_second"] / 1e12
        print(f"{row['loop']:22}{row['images_per_second']:12.1f}{tera:16.3f}{share:>10}")
    per_image = encoding_seconds / given.n_images
    print(
        f"ratio {ratio:.2f}; encoding once: {1000 * per_image:.1f} ms an image, both orientations"
    )
    if given.out:
        settings = {name: value for name, value in vars(given).items() if name != "out"}
        found = {"machine": machine, "torch": torch.__version__, "ratio": ratio, "rows": rows}
        given.out.write_text(json.dumps({**found, "settings": settings}, indent=2) + "\n")


if __name__ == "__main__":
    main()
