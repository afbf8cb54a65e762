"""Imports go up the list of layers only; the algorithm knows nothing of images or disks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gadc

PACKAGE = Path(gadc.__file__).parent
# What each part may import of gadc; parts not named here may import nothing of it.
BASE = {"errors", "runtime", "storage", "forks"}
ALLOWED = {
    "errors": set(),
    "runtime": BASE,
    "storage": BASE,
    "forks": set(),
    "portable_names": BASE,
    "images": BASE,
    "hub": BASE | {"images"},
    "subset": BASE | {"images", "hub"},
    "cluster": BASE,
    "features": BASE | {"images", "cluster"},
    "objective": BASE,
    "exact": BASE | {"objective"},
    "search": BASE | {"objective"},
    "baselines": BASE | {"objective", "search"},
    "training": BASE | {"images", "subset"},
    "sampling": BASE | {"images", "training"},
    "evaluation": BASE | {"images", "features"},
    "attach": BASE | {"images", "features", "subset", "training"},
    "per_class": BASE | {"cluster", "objective", "search"},
    "job": BASE | {"subset", "features", "objective", "search", "per_class"},
    "condense": BASE | {"cluster", "subset", "features", "job", "per_class"},
    "class_selector": BASE | {"features", "job"},
    "selector": BASE | {"class_selector", "objective", "search", "per_class", "job"},
    "peer_selectors": BASE | {"class_selector", "baselines", "objective", "job"},
    "export": BASE | {"subset", "images", "hub", "portable_names"},
    "runs": BASE
    | {"cluster", "images", "features", "subset", "search", "per_class", "job"}
    | {"condense", "export"},
    "report": BASE
    | {"images", "features", "portable_names", "subset", "objective", "job", "runs", "training"},
    "comparison": BASE
    | {"images", "features", "objective", "baselines", "evaluation", "per_class", "job", "runs"},
    "demo": BASE
    | {
        "report",
        "images",
        "per_class",
        "runs",
        "features",
        "objective",
        "evaluation",
        "export",
        "subset",
        "job",
    },
    "experiment": BASE
    | {
        "images",
        "features",
        "subset",
        "per_class",
        "job",
        "runs",
        "comparison",
        "training",
        "sampling",
        "evaluation",
        "demo",
        "attach",
        "export",
    },
}
EVERYTHING = {"__init__", "cli"}


def imported_parts(path: Path) -> set[str]:
    """Return the parts of gadc that a module imports, wherever in the file."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "gadc":
                names = [f"gadc.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("gadc.")}
    return parts - {"__version__"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_go_up_the_layers(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = imported_parts(path)
    if part in EVERYTHING:
        return
    forbidden = imported - ALLOWED.get(part, set()) - {part}
    assert not forbidden, f"{part} must not import {sorted(forbidden)}"


def test_importing_everything_does_not_import_torchvision() -> None:
    modules = [
        ".".join(("gadc", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__main__.py"
    ]
    script = (
        f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
        "assert not {'torchvision', 'timm', 'ray', 'diffusers', 'accelerate'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
