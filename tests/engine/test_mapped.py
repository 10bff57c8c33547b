"""An engine reads its weights where its file has them: little memory, and nothing unseen."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scrd_fast.engine.engine_file import NETWORK, read_engine_file
from scrd_fast.engine.load import load_engine
from scrd_fast.errors import EngineFileError

_MANY = """
import json, re, sys
from pathlib import Path
import numpy as np
from scrd_fast.engine.load import open_engine

engines, found = [], []
for _ in range(8):
    engines.append(open_engine(sys.argv[1])[0])
    side = engines[-1].spec.input_size
    engines[-1].score(np.zeros((1, side, side, 3), np.uint8))
    status = Path("/proc/self/status").read_text()
    found.append([int(re.search(name + r":\\s*(\\d+)", status)[1])
                  for name in ("VmRSS", "Threads")])
for engine in engines:
    engine.close()
print(json.dumps(found))
"""
_SCORE = """
import json, resource, sys
import numpy as np
from scrd_fast.engine.load import load_engine
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with load_engine(sys.argv[1]) as engine:
    side = engine.spec.input_size
    score = engine.score(np.zeros((1, side, side, 3), np.uint8)).scores[0]
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, float(score)]))
"""


@pytest.fixture
def path(small_file, tmp_path) -> Path:
    return Path(shutil.copy(small_file, tmp_path / "m.scrd"))


@pytest.fixture
def images(small_file) -> np.ndarray:
    side = read_engine_file(small_file)[0].spec.input_size
    return np.random.default_rng(3).integers(0, 256, (2, side, side, 3), np.uint8)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB only there")
def test_a_process_that_scores_needs_little_more_than_the_weights(small_file):
    """OpenVINO's libraries take about 60 MB of what is allowed besides."""
    done = subprocess.run([sys.executable, "-c", _SCORE, str(small_file)], capture_output=True,
                          text=True, check=True)
    grown, score = json.loads(done.stdout)
    weights = len(read_engine_file(small_file)[1][NETWORK])
    assert np.isfinite(score)
    assert grown * 1024 < 100e6 + 1.5 * weights


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
def test_eight_engines_cost_eight_times_the_weights_and_little_else(small_file):
    """A thread of the scorer's and two that begin what is next: the pools are the process's."""
    done = subprocess.run([sys.executable, "-c", _MANY, str(small_file)], capture_output=True,
                          text=True, check=True)
    memory, threads = zip(*json.loads(done.stdout), strict=True)
    weights = len(read_engine_file(small_file)[1][NETWORK])
    assert 1024 * (memory[-1] - memory[0]) / 7 < 1.15 * weights + 10e6
    assert (threads[-1] - threads[0]) / 7 <= 4


def _resident(path: Path) -> int:
    """KiB of a file that this process has in memory."""
    found = re.findall(rf"{re.escape(str(path))}\n.*?^Rss: +(\d+) kB",
                       Path("/proc/self/smaps").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return sum(map(int, found))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps")
def test_a_loaded_engine_reads_nothing_of_its_file(path, images):
    """Unless a batch of another size has to be compiled."""
    with load_engine(path) as engine:
        for _ in range(2):
            engine.score(images[:1])
            assert _resident(path.resolve()) == 0


def test_another_file_in_its_place_changes_nothing(path, images, tmp_path):
    with load_engine(path) as engine:
        before = engine.score(images)
        other = tmp_path / "other"
        other.write_bytes(b"another file")
        os.replace(other, path)
        np.testing.assert_array_equal(engine.score(images).maps, before.maps)
        path.unlink()
        np.testing.assert_array_equal(engine.score(images).maps, before.maps)


@pytest.mark.slow
def test_writing_into_the_file_ends_scoring(path, images):
    """Its weights may be others now."""
    with load_engine(path) as engine:
        engine.score(images)
        with open(path, "rb+") as file:
            file.seek(path.stat().st_size // 2)
            file.write(bytes(1000))
        os.utime(path, ns=(0, 0))  # two moments of writing may be one to a coarse clock
        with pytest.raises(EngineFileError, match=r"m\.scrd: was written into while it is loaded"):
            engine.score(images)
    with pytest.raises(EngineFileError, match="digest does not match"):
        load_engine(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_what_a_damaged_member_does_is_told_as_damage(path, share):
    """Whatever the network makes of it, while its digest is still computed."""
    at = int(path.stat().st_size * share)
    with open(path, "rb+") as file:
        file.seek(at)
        file.write(bytes(byte ^ 0xFF for byte in path.read_bytes()[at : at + 4096]))
    with pytest.raises(EngineFileError, match=r"its digest does not match the manifest$"):
        load_engine(path)
