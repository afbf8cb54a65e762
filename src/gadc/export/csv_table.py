"""A subset as a table for spreadsheet programs."""

import csv
import io

from gadc.storage import escape_name
from gadc.subset import Subset

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What makes spreadsheet programs run a cell's text as a formula."""


def csv_text(subset: Subset) -> str:
    """Return a subset as comma-separated values for spreadsheet programs.

    Text that such a program would run as a formula gets an apostrophe in front.
    """
    columns = {
        "index": subset.index.tolist(),
        "path": [_as_cell(path) for path in subset.paths],
        "sha256": [sha256 or "" for sha256 in subset.sha256],
        "label": subset.labels.tolist(),
        "class_name": [_as_cell(name) for name in subset.class_name],
        "rank": subset.rank.tolist(),
        "gain": subset.gain.tolist(),
        "weight": subset.weight.tolist(),
    }
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _as_cell(text: str) -> str:
    escaped = escape_name(text)
    return f"'{escaped}" if escaped.startswith(FORMULA_STARTS) else escaped
