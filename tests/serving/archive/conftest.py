"""An engine that scores hundreds of images in a second, archives for it, and what runs left."""

import contextlib
import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from tests.support.once import made_once

pytest.importorskip("pyarrow", reason="archives need pyarrow")
pytest.importorskip("fsspec", reason="archives need fsspec")


ROWS = 64  # of a shard; 400 images are six and a part
LONGER = 5


def make_engine(folder: Path) -> None:
    torch.manual_seed(5)
    checkpoint = Checkpoint(SCRD("resnet18").eval(), ScoringSpec(input_size=32, blur_sigma=1.0),
                            ModelConfig("resnet18", "random"))
    path = save_checkpoint(checkpoint, folder / "m.safetensors")
    scrd_fast.build_engine(path, folder / "m.scrd", device="cpu", precision="fp32",
                           buckets=(1, 8)).close()


@pytest.fixture(scope="session")
def engine_file(tmp_path_factory) -> Path:
    """A resnet18 at 32 px, for batches of 1 and 8."""
    return made_once(tmp_path_factory, "archive_engine", make_engine) / "m.scrd"


def write_images(folder: Path, count: int) -> list[str]:
    """Grey pictures of 64 px, of which every 100th, from the 51st on, is cut; their names."""
    rng = np.random.default_rng(count)
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        name = f"{number:06d}.png"
        data = cv2.imencode(".png", rng.integers(0, 256, (64, 64), np.uint8))[1].tobytes()
        (folder / name).write_bytes(data[:500] if number % 100 == 50 else data)
        names.append(name)
    return names


def write_manifest(path: Path, paths: list[str]) -> Path:
    """A CSV with an id for each path."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "path"))
        writer.writerows((f"id-{number}", each) for number, each in enumerate(paths))
    return path


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """A manifest of 400 pictures, of which 4 are cut."""
    def make(folder: Path) -> None:
        names = write_images(folder / "images", 400)
        write_manifest(folder / "manifest.csv", [f"images/{name}" for name in names])

    return made_once(tmp_path_factory, "archive", make) / "manifest.csv"


@pytest.fixture(scope="session")
def undisturbed(archive, engine_file, tmp_path_factory) -> Path:
    """What a run that nothing stops gives."""
    def make(folder: Path) -> None:
        from scrd_fast.serving.archive import score_archive

        score_archive(str(archive), str(engine_file), str(folder / "out"), rows=ROWS)

    return made_once(tmp_path_factory, "archive_undisturbed", make) / "out"


def read_results(out: Path) -> dict[str, bytes]:
    """All that a finished run left: its files and what is in them."""
    assert not [*out.glob("begun/*"), *out.rglob(".scrd-*")]
    return {str(each.relative_to(out)): each.read_bytes()
            for each in sorted(out.rglob("*")) if each.is_file() and each.name != ".lock"}


def read_rows(out: Path) -> list[dict[str, object]]:
    """The results of all shards, in their order."""
    from pyarrow import parquet

    return [row for shard in sorted(out.glob("scores/*.parquet"))
            for row in parquet.read_table(shard).to_pylist()]


@pytest.fixture(scope="session")
def longer(archive, tmp_path_factory) -> Path:
    """A manifest of the same files LONGER times, so that a run can be stopped before its end."""
    def make(folder: Path) -> None:
        lines = archive.read_text().splitlines()[1:]
        paths = [str(archive.parent / line.partition(",")[2]) for line in lines]
        write_manifest(folder / "longer.csv", LONGER * paths)

    return made_once(tmp_path_factory, "longer_archive", make) / "longer.csv"


def command(archive: Path, engine_file: Path, out: Path, *more: object, rows: int = ROWS,
            ) -> list[str]:
    return [sys.executable, "-m", "scrd_fast", "score-archive", str(archive), "--engine",
            str(engine_file), "--out", str(out), "--rows", str(rows), *map(str, more)]


def count_shards(out: Path) -> int:
    return len(list(out.glob("scores/rows-*")))


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def find_actors(starter: int) -> set[int]:
    """The processes of actors that score archives, on the raylets that a process has started."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if b"ray::_Actor" in (process / "cmdline").read_bytes() and (
                    parent_of(parent_of(int(process.name))) == starter):
                found.add(int(process.name))
    return found


def wait_for_end(processes: set[int]) -> None:
    """Until none of these runs any more."""
    end = time.monotonic() + 60
    while any(Path(f"/proc/{each}").exists() for each in processes):
        assert time.monotonic() < end
        time.sleep(0.05)


def wait_for_shards(process: "subprocess.Popen[Any]", out: Path, count: int) -> None:
    """Until a run has written so many; it may have ended."""
    end = time.monotonic() + 240
    while count_shards(out) < count and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
