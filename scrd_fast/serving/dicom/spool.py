"""What a DICOM node has accepted and is not done with: its files, and the ledger of them.

    received/INSTANCE.dcm        what came in
    results/JOB/KIND-UID.dcm     what is to be sent
    dead/JOB/received, dead/JOB/results   what was given up: a person has to look

An instance is accepted once its file is in received/ and on the disk. All else can be lost to a
kill at any moment and is made up for at the next start: the ledger says what state a job is in, and
`settle` brings its files where they belong in that state.
"""

import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, TextIO

from scrd_fast.data.decode.quiet import silent_libraries
from scrd_fast.errors import DataError, InputError, OutputError
from scrd_fast.files import atomic_write, writing
from scrd_fast.serving.dicom.ledger import (
    DEAD,
    DONE,
    SKIPPED,
    WAITING,
    Instance,
    Job,
    Ledger,
)

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST = 64
RESERVE = 2**28  # bytes of the disk that receiving leaves free: results need some


class Spool:
    """A folder that one process works on; see the module.

    most_bytes: of received files that are not done with; keep: what is received from now on stays
    when it is.
    """

    def __init__(self, folder: Path, most_bytes: int, *, keep: bool = False) -> None:
        """Raises OutputError where the folder cannot be written, InputError where another process
        works on it, and what Ledger raises."""
        self.folder, self._most_bytes, self.keep = folder, most_bytes, keep
        self._adding = threading.Lock()
        with writing(folder):
            for each in ("received", "results", "dead"):
                (folder / each).mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
        if not _try_lock(self._lock):
            self._lock.close()
            raise InputError(f"--spool: expected a folder of its own, got {folder}, which another"
                             " dicom-listen works on")
        self.ledger = Ledger(folder, create=True)
        self._take_stock()
        self._held = self.ledger.held_bytes()

    def close(self) -> None:
        self.ledger.close()
        self._lock.close()

    def accept(self, instance: Instance, data: bytes, peer: str) -> bool:
        """Store an instance; False where it is there already. When this returns it is on the disk.

        Raises OutputError where there is no room for it, and for what else the disk refuses.
        """
        path = self._received(instance.uid)
        if self.ledger.knows(instance.uid):
            self._tell_twice(instance, peer)
            return False
        self._check_room(len(data))
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)
        with writing(path):
            sync_folder(path.parent)
        with self._adding:
            if self.ledger.knows(instance.uid):  # by another association, at the same time
                self._tell_twice(instance, peer)
                return False
            # The file is what counts; what the ledger lacks after a loss of power is read from it.
            with self.ledger.change(durable=False):
                self.ledger.add(instance, len(data), time.time(), kept=self.keep)
                self.ledger.tell("received", peer=peer, study=instance.study,
                                 series=instance.series, instance=instance.uid)
            self._held += len(data)
        return True

    def _tell_twice(self, instance: Instance, peer: str) -> None:
        with self.ledger.change(durable=False):
            self.ledger.tell("received again", peer=peer, study=instance.study,
                             series=instance.series, instance=instance.uid)

    def _check_room(self, size: int) -> None:
        if self._held + size > self._most_bytes:
            raise OutputError(f"expected room for {size} bytes, got a spool that holds {self._held}"
                            f" of {self._most_bytes}")
        with writing(self.folder):
            free = shutil.disk_usage(self.folder).free
        if free < size + RESERVE:
            raise OutputError(f"expected {size + RESERVE} free bytes on the disk, got {free}")

    def received(self, job: Job) -> list[Path]:
        """The files of a job that is to be scored."""
        return [self._received(uid) for uid in self.ledger.instances(job)]

    def results(self, job: Job) -> Path:
        """The folder of what is to be sent of a job."""
        return self.folder / "results" / str(job.id)

    def _received(self, uid: str) -> Path:
        return self.folder / "received" / f"{uid}.dcm"

    def settle(self, job: Job) -> None:
        """Bring the files of a job to where they belong in its state; does nothing twice."""
        state = self.ledger.job(job.id).state
        dead, received, results = self._dead(job), self.received(job), self.results(job)
        names = self.ledger.files(job, WAITING, DEAD)
        with writing(self.folder):
            if state == DEAD:
                _move([results / name for name in names], dead / "results")
                _move(received, dead / "received")
            else:
                _move([dead / "results" / name for name in names], results)
                _move([dead / "received" / path.name for path in received],
                      self.folder / "received")
                shutil.rmtree(dead, ignore_errors=True)
            if state in (DEAD, DONE, SKIPPED):
                shutil.rmtree(results, ignore_errors=True)
            if state in (DONE, SKIPPED):
                for uid in self.ledger.instances(job, kept=False):
                    self._received(uid).unlink(missing_ok=True)
                self.ledger.release(job)
                with self._adding:
                    self._held = self.ledger.held_bytes()

    def is_kept(self, uid: str, sop_class: str) -> bool:
        """Whether an instance is there, and will stay."""
        return self.ledger.is_kept(uid, sop_class) and (
            self._received(uid).exists()
            or any(self.folder.glob(f"dead/*/received/{uid}.dcm")))

    def _dead(self, job: Job) -> Path:
        return self.folder / "dead" / str(job.id)

    def _take_stock(self) -> None:
        """After a kill: what files say that the ledger does not know, and the other way round."""
        for part in self.folder.rglob(".scrd-*.part"):
            part.unlink()
        for path in self.folder.glob("received/*.dcm"):
            if not self.ledger.knows(path.stem):
                try:
                    instance = read_instance(path)
                except DataError as error:
                    raise DataError(f"{path}: {error}; move it away") from error
                with self.ledger.change():
                    self.ledger.add(instance, path.stat().st_size, path.stat().st_mtime,
                                    kept=self.keep)
                    self.ledger.tell("found", study=instance.study, series=instance.series,
                                     instance=instance.uid)
        for uid in self.ledger.without_job():
            if not self._received(uid).exists():
                with self.ledger.change():
                    self.ledger.forget(uid)
                    self.ledger.tell("lost", instance=uid,
                                     detail="its file is gone from the spool")
        for job in self.ledger.unsettled():
            self.settle(job)


def _try_lock(file: TextIO) -> bool:
    """For a second: dicom-status looks at the lock, too, for a moment."""
    for _ in range(20):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def _move(paths: Iterable[Path], folder: Path) -> None:
    """Those of the files that are there into a folder."""
    for path in paths:
        if path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            os.replace(path, folder / path.name)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def check_uid(value: object) -> str:
    """A unique identifier, as a file can be called; raises DataError for anything else."""
    text = str(value or "")
    if _UID.fullmatch(text) is None or len(text) > _LONGEST:
        raise DataError("expected a unique identifier, got none or another text")
    return text


_UIDS = ["SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"]


def read_instance(source: Path | BinaryIO) -> Instance:
    """What a DICOM file, or an open one, says it is; raises DataError where it does not say."""
    import pydicom

    try:
        with silent_libraries():
            header = pydicom.dcmread(source, stop_before_pixels=True, specific_tags=_UIDS)
            return Instance(*(check_uid(header.get(keyword)) for keyword in _UIDS))
    except DataError:
        raise
    except Exception as error:
        # What a library says may quote what the file says of a patient.
        raise DataError(f"expected a DICOM data set, got {type(error).__name__} while reading it"
                        ) from error
