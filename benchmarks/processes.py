"""Verbs that run until they are stopped, in a process of their own."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def run_verb(log: Path, ready: str, *arguments: str
             ) -> "Iterator[tuple[subprocess.Popen[bytes], re.Match[str]]]":
    """scrd-fast with these arguments, until the block ends; gives what matches `ready` in what it
    says on standard error."""
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "scrd_fast", *arguments], stderr=file)
    try:
        while (found := re.search(ready, log.read_text())) is None:
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.02)
        yield process, found
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
