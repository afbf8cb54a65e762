"""The `gadc` command, a file per command; heavy libraries load only where they are needed."""

import contextlib
import errno
import inspect
import logging
import os
import re
import signal
import sys
import warnings
from types import FrameType
from typing import Annotated, NoReturn

import typer

import gadc
from gadc.cli import (
    attach,
    compare,
    demo,
    doctor,
    evaluate,
    experiment,
    export_command,
    features,
    plan,
    report_command,
    sample,
    selection,
    train,
)
from gadc.cli.console import Session, emit_error, printable
from gadc.cli.many_values import ManyValues
from gadc.errors import GadcError, InputError, RunError

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
"""128 + the number of the signal, as shells have it."""

UsageError = typer.BadParameter.__mro__[1]
"""Click's, wherever this version of typer has it from."""

NAMES_OF_FILES = {"bad_protocol"}
"""Codes of errors whose names are keys in a file, though options are called alike."""
NOT_OPTIONS = {"context", "data", "subset", "samples", "run", "runs", "protocol"}
"""Parameters of commands that are not given by a name of their own."""

app = typer.Typer(
    name="gadc",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo.demo,
    doctor.doctor,
    plan.plan,
    features.features,
    selection.select,
    export_command.export,
    attach.attach,
    train.train,
    sample.sample,
    evaluate.evaluate,
    experiment.experiment,
    report_command.report,
):
    app.command()(command)
app.command(cls=ManyValues)(compare.compare)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"gadc {gadc.__version__}")
        raise typer.Exit


@app.callback()
def gadc_options(
    context: typer.Context,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", metavar="", help="Show no progress and no log lines.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", metavar="", help="Show where in the program an error arose.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            help="Print the version.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Pick the few images that stand for a large folder of real images.

    gadc looks at every image once, then chooses, class by class, the subset whose distribution is
    closest to that of all images. Start with `gadc demo`, which needs no data of yours,
    or with `gadc select FOLDER --per-class 10 --out RESULT`.

    Results go to stdout; progress, log lines and errors to stderr. A command that was interrupted
    goes on where it stopped when it is run again. Exit status: 0 done, 1 failed, 2 input that can't
    be used, 3 done but with bad images set aside (`--strict-exit`), 130 interrupted, 143 ended by
    SIGTERM.
    """
    context.obj = Session(quiet=quiet, debug=debug)
    if quiet:  # transformers and diffusers load weights with bars of their own
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    _log_to_stderr(logging.WARNING if quiet else logging.INFO)


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logger = logging.getLogger("gadc")
    logger.handlers[:] = [handler]
    logger.setLevel(level)

    def show(message: Warning | str, category: type[Warning], *_where: object) -> None:
        sys.stderr.write(f"warning: {printable(str(message))}\n")

    warnings.showwarning = show  # type: ignore[assignment]


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(f"{record.levelname.lower()}: {record.getMessage()}")


def main() -> NoReturn:
    """Run the command line, and turn every way to end into an exit status."""
    as_json = "--json" in sys.argv
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that can't show a character must not end a run of hours.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        # For scripts, errors of usage too are objects; for people, typer explains them.
        if code := app(standalone_mode=not as_json):
            raise SystemExit(code)
    except GadcError as error:
        _fail(error, as_json=as_json)
    except KeyboardInterrupt:
        _end_interrupted(EXIT_INTERRUPTED)
    except SystemExit as ending:
        if ending.code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            _end_interrupted(int(ending.code))
        raise
    except UsageError as error:  # type: ignore[misc]
        _fail(InputError("usage", error.format_message()), as_json=as_json)
    except Exception as error:  # noqa: BLE001 - the last resort of a program that people use
        _fail(_explained(error), as_json=as_json)
    sys.exit(0)


def _fail(error: GadcError, *, as_json: bool) -> NoReturn:
    _show_traceback_if_asked()
    is_of_file = error.code in NAMES_OF_FILES
    message = error.message if is_of_file else _in_options(error.message)
    emit_error(message, error.code, as_json=as_json)
    sys.exit(error.exit_code)


def _explained(error: Exception) -> GadcError:
    """Return what to say of an error that nothing below expected."""
    # In whose words ever: torch's on the CPU is a RuntimeError.
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    ):
        return RunError("out_of_memory", f"not enough memory: {error}; ask for less at a time")
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        from gadc.storage import refused_by_system

        return refused_by_system(error)
    return GadcError(
        "unexpected",
        f"unexpected {type(error).__name__}: {error}; this is a bug of gadc's: run "
        "`gadc --debug ...` for the place and report it",
    )


def _in_options(message: str) -> str:
    """Return an error of the library with the names of its arguments as those of options."""
    names = {
        name
        for command in app.registered_commands
        if command.callback is not None
        for name in inspect.signature(command.callback).parameters
    } - NOT_OPTIONS
    for name in sorted(names, key=len, reverse=True):
        option = "--" + name.replace("_", "-")
        message = re.sub(rf"(?<![\w-]){name}=(?=\S)", f"{option} ", message)
        if "_" in name:  # a single word may be just a word
            message = re.sub(rf"(?<![\w/.-]){name}(?![\w/.-])", option, message)
    return message


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)


def _end_interrupted(code: int) -> NoReturn:
    sys.stderr.write("interrupted; run the same command again to go on where it stopped\n")
    sys.exit(code)


def _show_traceback_if_asked() -> None:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()
