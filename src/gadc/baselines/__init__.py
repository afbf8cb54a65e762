"""Published methods of selection, each in a file of its own, all with one signature."""

from gadc.baselines.difficulty import MARGIN_SOURCE, margin_difficulty
from gadc.baselines.methods import METHODS, Method
from gadc.baselines.pool import Pool

__all__ = ["MARGIN_SOURCE", "METHODS", "Method", "Pool", "margin_difficulty"]
