"""Every code that gadc raises stands in the reference, and nothing else does."""

import ast
import re
from pathlib import Path

import gadc

PACKAGE = Path(gadc.__file__).parent
REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "errors.md"
RAISERS = {"InputError", "RunError", "MissingExtraError", "GadcError", "LinkError"}


def codes_raised() -> set[str]:
    codes = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in RAISERS
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                codes.add(node.args[0].value)
    return codes


def test_reference_lists_every_code() -> None:
    listed = set(re.findall(r"^\| `([a-z_0-9]+)` \|", REFERENCE.read_text(), re.MULTILINE))
    assert codes_raised() - listed == set()
    assert listed - codes_raised() == set()
