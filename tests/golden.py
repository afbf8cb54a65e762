"""The seven golden problems: numbers measured on the published research code and by an exact LP."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from gadc import Objective
from real_data import REAL_DATA

N_CASES = 7


@dataclass(frozen=True)
class Golden:
    numbers: dict[str, Any]
    features: np.ndarray
    confidence_loss: np.ndarray

    def objective(self) -> Objective:
        """The objective in the published code's absolute units."""
        numbers = self.numbers
        return Objective(
            self.features,
            confidence_loss=self.confidence_loss,
            capacity=numbers["kappa"],
            epsilon=numbers["epsilon"],
            mean_weight=numbers["mean_weight"],
            std_weight=numbers["std_weight"],
            confidence_weight=numbers["confidence_weight"],
            units="absolute",
        )

    def cost(self) -> np.ndarray:
        features = self.features.astype(np.float64)
        subset = features[self.numbers["subset"]]
        return ((subset[:, None] - features[None]) ** 2).sum(2)


def golden(case: int) -> Golden:
    folder = REAL_DATA / "golden"
    tensors = load_file(folder / "objective_and_selection.safetensors")
    numbers = json.loads((folder / "objective_and_selection.json").read_text())[case]
    return Golden(numbers, tensors[f"case{case}.features"], tensors[f"case{case}.confidence_loss"])
