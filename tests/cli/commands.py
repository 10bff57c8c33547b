"""Running the command line: as a process of its own, and within this one."""

import subprocess
import sys

import pytest


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scrd_fast", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def main(*arguments: object) -> int:
    """Without a process of its own."""
    from scrd_fast.cli import main

    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return ended.value.code
