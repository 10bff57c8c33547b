"""Code in a process of its own, whose end would be seen."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_silently(code: str, *options: str) -> str:
    """What the code prints; it must end well, and say nothing on standard error."""
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True,
                          cwd=ROOT, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout
