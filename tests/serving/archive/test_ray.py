"""Archives on Ray: what one machine gives, whoever dies."""

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import scrd_fast
from scrd_fast.engine.engine_file import manifest_digest
from scrd_fast.errors import EngineFileError, InputError
from scrd_fast.serving.archive import score_archive
from scrd_fast.serving.archive.ray_runner import _Actor
from tests.serving.archive.conftest import (
    LONGER,
    command,
    count_shards,
    find_actors,
    read_rows,
    wait_for_shards,
    write_manifest,
)

ray = pytest.importorskip("ray", reason="needs Ray")


@pytest.mark.slow
def test_the_verb_on_ray(longer, engine_file, undisturbed, tmp_path):
    """Bit for bit what one machine gives, although an actor is killed."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(longer, engine_file, out, "--ray", "local"), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    wait_for_shards(process, out, 1)
    (actor,) = find_actors(process.pid)
    os.kill(actor, signal.SIGKILL)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    count = 400 * LONGER
    assert said.endswith(f"{out}: {count} files, {count} images, {count // 100} not scored\n")
    assert [row["id"] for row in read_rows(out)] == [f"id-{number}" for number in range(count)]
    assert [row["score"] for row in read_rows(out)] == LONGER * [
        row["score"] for row in read_rows(undisturbed)]


@pytest.fixture
def cluster():
    """Two raylets of one CPU each on this machine; their address."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        made.add_node(num_cpus=1)
        made.wait_for_nodes()
        yield made.address
    finally:
        made.shutdown()


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_two_raylets_share_the_work(archive, engine_file, undisturbed, cluster, tmp_path):
    """An engine on each of them, which are told apart by the CPU's time that they take."""
    lines = archive.read_text().splitlines()
    names = [line.partition(",")[2] for line in lines[1:]]
    manifest = write_manifest(archive.with_name("longest.csv"), 20 * names)
    process = subprocess.Popen(
        command(manifest, engine_file, tmp_path / "out", "--ray", cluster, "--quiet", rows=400),
        stderr=subprocess.PIPE, text=True)
    wait_for_shards(process, tmp_path / "out", 2)
    actors = find_actors(os.getpid())
    assert len(actors) == 2
    began, spent = {each: cpu_seconds(each) for each in actors}, {}
    while count_shards(tmp_path / "out") < 18 and process.poll() is None:
        spent = {each: cpu_seconds(each) - began[each] for each in actors}
        time.sleep(0.1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    rows = read_rows(tmp_path / "out")
    assert [row["score"] for row in rows] == 20 * [row["score"] for row in read_rows(undisturbed)]
    print(f"seconds of the CPU's time: {sorted(spent.values())}")
    assert min(spent.values()) > 0.5 * max(spent.values())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "ray://127.0.0.1:1", "x"])
def test_no_such_cluster(archive, engine_file, tmp_path, address):
    with pytest.raises(InputError, match="^--ray: expected local, auto or the HOST:PORT of a"
                                         f" cluster that runs, got '{address}'") as refused:
        score_archive(str(archive), str(engine_file), str(tmp_path / "out"), ray=address)
    assert "\n" not in str(refused.value)


@pytest.fixture
def local_ray():
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.slow
def test_a_data_set_of_ray(archive, engine_file, undisturbed, local_ray):
    """Paths go in, and come out with scores, beside whatever else was there."""
    import ray.data

    from scrd_fast.serving.archive import score_dataset

    expected = read_rows(undisturbed)[:120]
    made = ray.data.from_items([
        {"id": row["id"], "path": str(archive.parent / row["path"]), "age": number}
        for number, row in enumerate(expected)])
    found = score_dataset(made, engine_file, batch_size=50).take_all()
    assert len(found) == 120
    for row in found:
        wanted = expected[row["age"]]
        assert list(row) == ["id", "path", "age", *list(wanted)[3:]]
        assert [row[name] for name in ("id", *list(wanted)[3:])] == [
            wanted[name] for name in ("id", *list(wanted)[3:])]
    with pytest.raises(InputError, match="dataset: expected a column path, got id"):
        score_dataset(made.select_columns(["id"]), engine_file)


def test_another_engine_on_a_node(engine_file, small_file, tmp_path):
    with scrd_fast.load_engine(small_file) as other, pytest.raises(
            EngineFileError, match="expected the same engine file on each node"):
        _Actor().load(str(engine_file), manifest_digest(other.manifest), str(tmp_path))


@pytest.mark.slow
def test_a_shard_that_ends_every_process(archive, engine_file, tmp_path):
    """As one does that has no memory left: the run ends, and names it."""
    process = subprocess.Popen(
        command(archive, engine_file, tmp_path / "out", "--ray", "local", "--quiet", rows=400),
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None:
        for each in find_actors(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        time.sleep(0.05)
    assert process.returncode == 2
    assert re.search(r"^error: the engine: the process that worked on it ended 5 times, ",
                     process.stderr.read(), re.MULTILINE)
