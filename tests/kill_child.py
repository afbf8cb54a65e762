"""A selection in a process of its own, for the tests that kill it: OUT N_WORKERS [ENGINE]."""

import sys
from pathlib import Path

from feature_sets import feature_set
from gadc.condense import CondenseConfig, condense

CLASS_SIZES = (24, 30, 18, 27, 21, 25)
CONFIG = {"per_class": 4, "patience": 1}

if __name__ == "__main__":
    features, config = feature_set(*CLASS_SIZES), CondenseConfig(**CONFIG)
    # The tests start the clock here: imports take longer than the selection.
    print("ready", flush=True)  # noqa: T201
    engine = sys.argv[3] if len(sys.argv) > 3 else "local"
    condense(features, config, out=Path(sys.argv[1]), workers=int(sys.argv[2]), engine=engine)
