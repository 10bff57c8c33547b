"""Running the command line: as a process of its own, and within this one."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scrd_fast", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What `run` tells, without a process of its own and the seconds that its imports take."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        code = main(*arguments)
    out, err = (stream.buffer.getvalue().decode() for stream in streams)
    return subprocess.CompletedProcess(arguments, code, out, err)


def main(*arguments: object) -> int:
    """Without a process of its own."""
    from scrd_fast.cli import main

    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return ended.value.code
