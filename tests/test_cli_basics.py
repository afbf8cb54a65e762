"""What all commands share: fast start, help, one line per error, exit status, no tracebacks."""

import errno
import inspect
import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch

import gadc as package
from cli_runner import Gadc, gadc_fixture  # noqa: F401 - a fixture
from gadc.cli import _in_options, app, console, options
from gadc.cli.features import features as features_command
from gadc.cli.selection import select as select_command
from gadc.errors import RunError

COMMANDS = ("demo", "doctor", "plan", "features", "select", "export")
HEAVY = ("torch", "sklearn", "scipy", "transformers", "pyarrow", "PIL")


@pytest.mark.parametrize("arguments", [("--help",), *((name, "--help") for name in COMMANDS)])
def test_help_explains_every_option(gadc: Gadc, arguments: tuple[str, ...]) -> None:
    done = gadc(*arguments)
    assert done.code == 0
    assert done.stderr == ""
    assert "Show this message" in done.stdout


def test_every_option_has_a_help_text() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        hints = typing.get_type_hints(command.callback, include_extras=True)
        for name in inspect.signature(command.callback).parameters:
            if name != "context":
                (info,) = hints[name].__metadata__
                assert info.help, f"{command.callback.__name__} {name}"


def test_help_imports_no_heavy_library() -> None:
    script = (
        "import sys, contextlib\n"
        "from gadc.cli import app\n"
        "with contextlib.suppress(SystemExit):\n"
        "    app(['select', '--help'])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_is_the_packages(gadc: Gadc) -> None:
    assert gadc("--version").stdout == f"gadc {package.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nosuch",),
        ("select",),
        ("select", "data", "--out", "x", "--nosuch"),
        ("select", "data", "--out", "x", "--per-class", "ten"),
        ("export", "subset", "--as", "nosuch"),
    ],
)
def test_wrong_usage_exits_2(gadc: Gadc, arguments: tuple[str, ...]) -> None:
    done = gadc(*arguments)
    assert done.code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_defaults_of_options_are_those_of_the_library() -> None:
    from gadc.features.encoders import DEFAULT_ENCODER
    from gadc.job.config import CondenseConfig
    from gadc.runs.inputs import ImageSettings

    assert options.DEFAULT_ENCODER == DEFAULT_ENCODER
    config = {name: field.default for name, field in CondenseConfig.model_fields.items()}
    images = {name: getattr(ImageSettings(), name) for name in ImageSettings.__annotations__}
    images["labels"] = None  # `auto`: neither --labels nor --no-labels
    for command, known in ((features_command, images), (select_command, {**images, **config})):
        parameters = inspect.signature(command).parameters
        found = {name: parameters[name].default for name in known if name in parameters}
        assert found == {name: known[name] for name in found}
        assert found


def test_select_has_an_option_for_every_field_of_the_config() -> None:
    from gadc.job.config import CondenseConfig

    parameters = set(inspect.signature(select_command).parameters)
    assert set(CondenseConfig.model_fields) - parameters == {"allocation"}  # --allocation-file
    assert "allocation_file" in parameters


def test_an_error_is_one_line_on_stderr_and_an_object_for_scripts(gadc: Gadc) -> None:
    done = gadc("features", "/no/such\nfolder", "--out", "x", "--encoder", "pixels", "--json")
    assert done.code == 2
    assert done.error_code == "missing_source"
    assert done.json["error"]["code"] == "missing_source"


@pytest.mark.parametrize(
    "arguments",
    [("select", "x", "--out", "y", "--per-class", "many"), ("train", "--nope"), ("export",)],
)
def test_errors_of_usage_are_objects_for_scripts_too(
    gadc: Gadc, arguments: tuple[str, ...]
) -> None:
    done = gadc(*arguments, "--json")
    assert (done.code, done.error_code, done.json["error"]["code"]) == (2, "usage", "usage")
    for_people = gadc(*arguments)
    assert (for_people.code, for_people.stdout) == (2, "")
    assert "Usage: gadc" in for_people.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 93.1 GiB"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_want_of_memory_is_no_bug(
    gadc: Gadc, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def end() -> None:
        raise error

    monkeypatch.setattr("gadc.cli.doctor._machine", end)
    done = gadc("doctor")
    assert (done.code, done.error_code) == (1, "out_of_memory")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("per_class=0: too small", "--per-class 0: too small"),
        ("raise max_bad (now 1 %)", "raise --max-bad (now 1 %)"),
        ("give weights=FILE", "give --weights FILE"),
        ("no images in /data/per_class/budget", "no images in /data/per_class/budget"),
        ("the budget and the labels", "the budget and the labels"),
    ],
)
def test_errors_speak_of_options(message: str, shown: str) -> None:
    assert _in_options(message) == shown


@pytest.mark.parametrize(("flags", "shows"), [((), False), (("--debug",), True)])
def test_a_bug_exits_1_and_shows_its_place_only_on_request(
    gadc: Gadc, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], shows: bool
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("in the doctor")

    monkeypatch.setattr("gadc.cli.doctor._machine", broken)
    done = gadc(*flags, "doctor")
    assert done.code == 1
    assert done.error_code == "unexpected"
    assert ("Traceback" in done.stderr) == shows


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [
        (errno.EACCES, "some/folder", "system_error"),
        (errno.ENOSPC, "some/folder", "disk_full"),
        (errno.ENOSPC, None, "disk_full"),  # of `> FILE`
    ],
)
def test_refusal_of_the_system_names_the_file(
    gadc: Gadc, monkeypatch: pytest.MonkeyPatch, number: int, name: str | None, code: str
) -> None:
    def refused() -> None:
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr("gadc.cli.doctor._machine", refused)
    done = gadc("doctor")
    assert (done.code, done.error_code) == (1, code)
    assert (name or "what is printed") in done.stderr


@pytest.mark.parametrize(
    ("ending", "code"),
    [(KeyboardInterrupt(), 130), (SystemExit(143), 143), (RunError("x", "y"), 1)],
)
def test_every_way_to_end_has_its_status(
    gadc: Gadc, monkeypatch: pytest.MonkeyPatch, ending: BaseException, code: int
) -> None:
    def end() -> None:
        raise ending

    monkeypatch.setattr("gadc.cli.doctor._machine", end)
    done = gadc("doctor")
    assert done.code == code
    assert "Traceback" not in done.stderr


def test_doctor_names_what_can_be_used_and_how_to_get_the_rest(gadc: Gadc) -> None:
    found = gadc("doctor", "--json").json
    usable = {encoder["name"]: encoder["usable"] for encoder in found["encoders"]}
    assert usable["pixels"]
    assert found["self_check"] == "ok"
    text = gadc("doctor").stdout
    for extra, entry in found["extras"].items():
        assert (entry["version"] or f"pip install 'gadc[{extra}]'") in text


def test_doctor_writes_nothing(gadc: Gadc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    gadc("doctor")
    assert not list(tmp_path.iterdir())


def test_a_terminal_never_gets_control_characters() -> None:
    assert console.printable("a\x1b[2J\u202eb\nc\udcff") == r"a\x1b[2J\u202eb\nc\udcff"
    assert console.printable("é 日本 😀") == "é 日本 😀"


def test_tables_align_numbers_to_the_right() -> None:
    text = console.table([["a", "1.5"], ["bc", "10.25"]], headers=["name", "value"])
    assert text.splitlines() == ["name  value", "a       1.5", "bc    10.25"]


def test_json_is_one_object(gadc: Gadc) -> None:
    assert isinstance(json.loads(gadc("doctor", "--json").stdout), dict)
