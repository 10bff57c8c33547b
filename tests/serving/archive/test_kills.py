"""20 000 images, and runs that are killed again and again: each image is there exactly once."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.serving.archive.conftest import (
    command,
    count_shards,
    find_actors,
    read_results,
    read_rows,
    wait_for_end,
    wait_for_shards,
    write_images,
    write_manifest,
)
from tests.support.once import made_once

COUNT, ROWS, KILLS = 20_000, 250, 10


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A manifest of 20 000 pictures, of which 200 are cut."""
    def make(folder: Path) -> None:
        names = write_images(folder / "images", COUNT)
        write_manifest(folder / "manifest.csv", [f"images/{name}" for name in names])

    return made_once(tmp_path_factory, "large_archive", make) / "manifest.csv"


@pytest.fixture(scope="module")
def large_undisturbed(large, engine_file, tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        done = subprocess.run(command(large, engine_file, folder / "out", rows=ROWS), check=False)
        assert done.returncode == 1

    return made_once(tmp_path_factory, "large_undisturbed", make) / "out"


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--ray", "local")], ids=["here", "ray"])
def test_killed_again_and_again(large, engine_file, large_undisturbed, tmp_path, more):
    """By seeded chance: while it starts, or some shards later in the middle of one; on Ray an actor
    dies before, in the middle of a shard, too."""
    if more:
        pytest.importorskip("ray", reason="needs Ray")
    out, rng = tmp_path / "out", random.Random(7)
    run = command(large, engine_file, out, *more, "--quiet", rows=ROWS)
    for number in range(KILLS):
        before, actors = count_shards(out), set[int]()
        process = subprocess.Popen(run, stderr=subprocess.PIPE)
        if number % 3 == 0:
            time.sleep(rng.uniform(0, 1.5))
        else:
            wait_for_shards(process, out, before + rng.randint(1, 5))
            if more:
                (actor,) = find_actors(process.pid)
                os.kill(actor, signal.SIGKILL)
                wait_for_shards(process, out, count_shards(out) + 1)
                actors = find_actors(process.pid)
                assert len(actors - {actor}) == 1
            time.sleep(rng.uniform(0, 0.2))
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.communicate()
        wait_for_end(actors)  # nobody works on for a driver that is dead
    assert 0 < count_shards(out) < COUNT // ROWS
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout == f"{out}: {COUNT} files, {COUNT} images, {COUNT // 100} not scored\n"
    assert read_results(out) == read_results(large_undisturbed)
    rows = read_rows(out)
    assert [row["id"] for row in rows] == [f"id-{number}" for number in range(COUNT)]
    assert [number for number, row in enumerate(rows) if row["error"]] == list(
        range(50, COUNT, 100))
    assert all((row["score"] is None) == (row["error"] is not None) for row in rows)
