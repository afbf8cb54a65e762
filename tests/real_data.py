"""Where the real images and golden numbers lie, for the tests that use them."""

import os
from pathlib import Path

import pytest

REAL_DATA = Path(
    os.environ.get("GADC_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason=f"real data not found at {REAL_DATA}; set GADC_REAL_DATA"
)
