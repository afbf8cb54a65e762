"""How commands speak: results on stdout, everything else on stderr."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gadc.portable_names import printable as printable

if TYPE_CHECKING:
    from gadc.runtime import ProgressStyle

COLUMN_GAP = "  "
NUMBER = re.compile(r"[-+]?[\d,]+(\.\d+)?%?( ± [\d.]+%?)?")

AsJson = Annotated[
    bool,
    typer.Option("--json", metavar="", help="Print the result as one JSON object, for scripts."),
]


@dataclass(frozen=True)
class Session:
    """What the options before the command's name ask for.

    Attributes:
        quiet: No progress and no log lines; errors and warnings still appear.
        debug: Errors with their Python traceback.
    """

    quiet: bool = False
    debug: bool = False

    @property
    def progress(self) -> "ProgressStyle":
        """How long loops report; see `gadc.runtime.progress`."""
        return "silent" if self.quiet else "auto"


def session_of(context: typer.Context) -> Session:
    """Return the session that `gadc`'s own options set up."""
    return context.obj if isinstance(context.obj, Session) else Session()


def emit(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print a command's result on stdout.

    Args:
        result: The result for scripts.
        text: The same for people.
        as_json: Which of the two.
    """
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
    else:
        lines = text.rstrip("\n").split("\n")
        sys.stdout.write("\n".join(printable(line) for line in lines) + "\n")
    sys.stdout.flush()


def emit_error(message: str, code: str, *, as_json: bool) -> None:
    """Print one line about an error on stderr and, for scripts, an object on stdout."""
    one_line = " ".join(message.split())
    sys.stderr.write(f"error: {printable(one_line)} [{code}]\n")
    if as_json:
        sys.stdout.write(json.dumps({"error": {"code": code, "message": message}}) + "\n")


def table(rows: Sequence[Sequence[str]], *, headers: Sequence[str] = ()) -> str:
    """Return rows as aligned columns; columns of numbers are aligned to the right.

    Args:
        rows: Cells, the same number in each row.
        headers: Names of the columns; none if empty.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    lines = [list(headers), *shown] if headers else shown
    if not lines:
        return ""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    is_number = [
        all(_looks_like_number(row[column]) for row in shown) for column in range(len(widths))
    ]
    return "\n".join(
        COLUMN_GAP.join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ).rstrip()
        for line in lines
    )


def _looks_like_number(cell: str) -> bool:
    return not cell or NUMBER.fullmatch(cell) is not None
