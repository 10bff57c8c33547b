"""Running the command line: its streams, its warnings, its exit codes."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer

from scrd_fast.cli.app import app
from scrd_fast.errors import ScrdError, explain_missing

# Whether typer brings its own click or uses the installed one, this is click's UsageError.
_UsageError: Any = typer.BadParameter.__mro__[1]
_BROKEN_PIPE = 141  # as shells have it: 128 and SIGPIPE


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """A warning of this package is one line, without the place in the code that it came from."""
    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int,
             file: TextIO | None = None, line: str | None = None) -> None:
        if issubclass(category, UserWarning) and Path(filename).is_relative_to(home):
            typer.echo(f"warning: {' '.join(str(message).split())}", err=True)
        else:
            standard(message, category, filename, lineno, file, line)

    home = Path(__file__).parent.parent  # the package
    with warnings.catch_warnings():
        standard, warnings.showwarning = warnings.showwarning, show
        yield


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; an error is one line on standard error and exit code 2."""
    _spin_briefly()
    _open_standard_streams()
    with _plain_warnings():
        code, text = _run(sys.argv[1:] if arguments is None else [*arguments])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        code, text = _BROKEN_PIPE, ""
    except OSError as error:
        _discard(sys.stdout)
        code, text = 2, f"error: standard output: cannot be written: {error.strerror}"
    try:
        if text:
            typer.echo(text, err=True)
        sys.stderr.flush()
    except OSError:  # nobody is left to tell; the exit code says it
        _discard(sys.stderr)
    sys.exit(code)


def _run(arguments: list[str]) -> tuple[int, str]:
    """Exit code, and what to say on standard error."""
    command = typer.main.get_command(app)
    try:
        with explain_missing(f"scrd-fast {' '.join(arguments[:1])}"), (
                command.make_context("scrd-fast", arguments)) as context:
            command.invoke(context)
        return 0, ""
    except typer.Exit as done:
        return done.exit_code, ""
    except (typer.Abort, KeyboardInterrupt):
        return 130, "interrupted"
    except (BrokenPipeError, SystemExit):  # the latter is what Rich makes of the former
        return _BROKEN_PIPE, ""
    except ScrdError as error:
        text = str(error)
    except _UsageError as error:
        text = f"{error.format_message()} See scrd-fast --help."
    except OSError as error:  # such as a disk that is full
        where = "" if error.filename is None else f"{error.filename}: "
        text = f"{where}{error.strerror or error}"
    return 2, f"error: {' '.join(text.split())}"


def _spin_briefly() -> None:
    """Let PyTorch's threads soon sleep where they have no work, unless the user chose otherwise.

    Spinning takes the cores from whatever else runs there, and then from itself: beside another
    training on the same two cores a teacher's step takes 3.7 s with GNU's 300 000 turns, 0.95 s
    with these, 0.9 s with none; alone it is as fast with these as with all, and 13 % slower with
    none. Has an effect before PyTorch is loaded, here and in processes that are started from here.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "3000"


def _open_standard_streams() -> None:
    """Fill the places of closed standard streams, else a file opened later would become one.

    What is written to a closed standard output fails, for nobody would see it; messages to a
    closed standard error are lost. Names of files that the terminal cannot show are escaped.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere: the interpreter flushes it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
