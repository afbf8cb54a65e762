"""Runs the command line in this process, or in one of its own."""

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START = [sys.executable, "-c", "from gadc.cli import main; main()"]


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdout)
        return found

    @property
    def error_code(self) -> str:
        """The code in brackets at the end of the one error line."""
        errors = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.stderr
        return errors[0].rpartition("[")[2].removesuffix("]")


Gadc = Callable[..., Finished]


@pytest.fixture(name="gadc")
def gadc_fixture(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gadc]:
    """Call `gadc` with arguments, in this process."""
    from gadc.cli import main

    logger = logging.getLogger("gadc")
    handlers, level = logger.handlers[:], logger.level
    with warnings.catch_warnings():

        def run(*arguments: object) -> Finished:
            monkeypatch.setattr(sys, "argv", ["gadc", *map(str, arguments)])
            capfd.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
            output = capfd.readouterr()
            code = ended.value.code
            return Finished(code if isinstance(code, int) else 0, output.out, output.err)

        yield run
    logger.handlers[:] = handlers
    logger.setLevel(level)


def spawn(*arguments: object) -> subprocess.Popen[str]:
    """Start `gadc` in a process of its own."""
    return subprocess.Popen(
        [*START, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the contents of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
