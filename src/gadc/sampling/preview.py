"""Grids of samples while a model trains."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from gadc.sampling.config import SampleConfig
from gadc.sampling.model import SamplingModel
from gadc.sampling.pictures import grid, png_bytes
from gadc.storage import write_bytes
from gadc.training.record import RunRecord, RunTexts
from gadc.training.spaces import DiffusionSpace

FOLDER_NAME = "previews"
N_COLUMNS, N_ROWS = 8, 4
STEPS = 50
"""Enough to judge by eye."""
MAX_CLASSES = N_COLUMNS


class GridWriter:
    """Draws `previews/step-000001000.png`: a class a column, always from the same noise.

    It is a `gadc.training.loop.Preview`.

    Args:
        cfg_scale: Of guidance; 1 is used where there is nothing to guide by.
        batch_size: Images at a time.
    """

    def __init__(self, *, cfg_scale: float = 1.5, batch_size: int = N_COLUMNS * N_ROWS) -> None:
        self._cfg_scale, self._batch_size = cfg_scale, batch_size

    def __call__(
        self,
        run: Path,
        record: RunRecord,
        space: DiffusionSpace,
        weights: Mapping[str, torch.Tensor],
        step: int,
    ) -> None:
        """Draw the grid of one step."""
        texts = RunTexts.load(run) if record.shape.n_text_tokens else None
        device = next(iter(weights.values())).device
        model = SamplingModel(record, space, weights, texts=texts, device=device, step=step)
        can_guide = model.is_conditional and record.config.drop_probability > 0
        config = SampleConfig(
            n_samples=N_COLUMNS * N_ROWS,
            steps=STEPS,
            cfg_scale=self._cfg_scale if can_guide else 1.0,
            seed=record.config.seed,
        )
        n_samples = config.n_samples
        labels = None
        if record.shape.n_classes:
            # Classes far apart in the list, the same in every preview.
            n_shown = min(record.shape.n_classes, MAX_CLASSES)
            shown = np.linspace(0, record.shape.n_classes - 1, n_shown).round().astype(np.int64)
            labels = np.resize(np.resize(shown, N_COLUMNS), n_samples)
        images = [
            model.sample(
                range(start, min(start + self._batch_size, n_samples)),
                None if labels is None else labels[start : start + self._batch_size],
                config,
            )
            for start in range(0, n_samples, self._batch_size)
        ]
        folder = run / FOLDER_NAME
        folder.mkdir(exist_ok=True)
        sheet = grid(np.concatenate(images), n_columns=N_COLUMNS)
        write_bytes(folder / f"step-{step:09d}.png", png_bytes(sheet))
