"""Archives on Ray: what one machine gives, whoever dies."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs Ray")

from tests.serving.archive.conftest import command, read_results, wait_for_shards


def actors_of(out: Path) -> set[int]:
    """The processes of Ray's that score into a folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ray::_Actor" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
    return found


def test_the_verb_on_ray(archive, engine_file, undisturbed, tmp_path):
    """Bit for bit what one machine gives, although an actor is killed."""
    out = tmp_path / "out"
    before = actors_of(out)
    process = subprocess.Popen(
        command(archive, engine_file, out, "--ray", "local"), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    wait_for_shards(process, out, 1)
    for each in actors_of(out) - before:
        os.kill(each, signal.SIGKILL)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert said.endswith(f"{out}: 400 files, 400 images, 4 not scored\n")
    assert read_results(out) == read_results(undisturbed)
