"""How fast a DICOM node takes in files: python -m benchmarks.dicom_node

dcmtk's storescu sends copies of an image that pydicom brings along (39 kB), each an instance of its
own: on one association, and as many on four at a time, in turn. Each is on the disk before it is
answered; beside it stands what the disk alone takes for as many files, each waited for. Wanted: 50
files a second, and four not slower than one. Needs dcmtk; nothing is scored or sent.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file

from benchmarks.models import engine_file, untrained
from benchmarks.processes import run_verb
from scrd_fast.files import atomic_write
from scrd_fast.serving.dicom.spool import sync_folder

FILES, AT_ONCE = 200, 4
WANTED = 50  # files a second
NOT_SLOWER = 0.9  # of four associations against one, on a machine that does other things


def write_files(folder: Path, first: int) -> None:
    """FILES instances of one series, numbered from `first`, in AT_ONCE folders."""
    image = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    for i in range(FILES):
        place = folder / str(i % AT_ONCE)
        place.mkdir(parents=True, exist_ok=True)
        image.SOPInstanceUID = f"1.2.3.4.{first + i}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(place / f"{i}.dcm")


@contextmanager
def run_node(folder: Path) -> Iterator[int]:
    """A node that waits for more for ever; gives its port."""
    engine = engine_file(untrained("resnet18", 64, folder), "fp32")
    with run_verb(folder / "log", r"ready: \S+:(\d+)\n", "dicom-listen", "--engine", str(engine),
                  "--to", "NOBODY@127.0.0.1:9", "--port", "0", "--spool", str(folder / "spool"),
                  "--complete-after", "1e9") as (_, found):
        yield int(found[1])


def send(port: int, commands: list[list[Path]]) -> float:
    """Seconds that it takes to send the folders of each command at the same time."""
    began = time.perf_counter()
    senders = [subprocess.Popen(
        ["storescu", "-pdu", "131072", "+sd", "-aec", "SCRD-FAST", "127.0.0.1", str(port),
         *map(str, folders)]) for folders in commands]
    codes = [sender.wait() for sender in senders]
    if any(codes):
        raise SystemExit("error: storescu could not send all")
    return time.perf_counter() - began


def write_alone(folder: Path, data: bytes) -> float:
    """Seconds in which the disk takes FILES files, one after the other."""
    began = time.perf_counter()
    for i in range(FILES):
        with atomic_write(folder / str(i)) as temporary:
            temporary.write_bytes(data)
        sync_folder(folder)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dicom_node", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="Of each, in turn.")
    rounds = parser.parse_args().rounds
    names = "one association", f"{AT_ONCE} associations", "the disk alone"
    rates: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as place, run_node(Path(place)) as port:
        folder = Path(place)
        for i in range(rounds):
            for kind in range(2):
                files = folder / "files" / f"{i}-{kind}"
                write_files(files, (2 * i + kind) * FILES)
                parts = sorted(files.iterdir())
                seconds = send(port, [[each] for each in parts] if kind else [parts])
                rates[names[kind]].append(FILES / seconds)
            data = (parts[0] / "0.dcm").read_bytes()
            rates[names[2]].append(FILES / write_alone(folder / f"disk{i}", data))
        stored = sum(1 for _ in os.scandir(folder / "spool" / "received"))
    assert stored == 2 * rounds * FILES, f"{stored} files were stored"
    middle = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        print(f"{name:>16}: {middle[name]:5.0f} files/s  ({min(found):.0f} to {max(found):.0f})")
    slow = middle[names[0]] < WANTED or middle[names[1]] < NOT_SLOWER * middle[names[0]]
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
