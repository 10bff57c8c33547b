"""What a spool holds, for people and for what watches it."""

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scrd_fast.errors import DataError
from scrd_fast.progress import duration
from scrd_fast.serving.dicom.ledger import DEAD, DONE, SENT, SKIPPED, WAITING, Ledger


@dataclass(frozen=True)
class Dead:
    """A series that was given up, and where its files are."""

    study: str
    series: str
    reason: str
    folder: str


@dataclass(frozen=True)
class Status:
    """Counts of series unless told otherwise. arriving: instances of arriving_studies that are not
    complete, the newest quiet_s seconds old; to_send, sent: objects of results; next_attempt_s:
    until the next object is due, and trouble: why it was not taken before; bytes: of received
    files."""

    listening: bool
    arriving: int
    arriving_studies: int
    quiet_s: float | None
    to_score: int
    to_send: int
    next_attempt_s: float | None
    trouble: str | None
    sent: int
    done: int
    skipped: int
    bytes: int
    dead: tuple[Dead, ...]

    def lines(self) -> list[str]:
        """For people."""
        found = [
            "listening" if self.listening else "nobody listens: start scrd-fast dicom-listen",
            f"arriving   {self.arriving} instances of {self.arriving_studies} studies" + (
                "" if self.quiet_s is None else f", the newest {duration(self.quiet_s)} ago"),
            f"to score   {self.to_score} series",
            f"to send    {self.to_send} objects" + (
                f", the next in {duration(self.next_attempt_s)}" if self.next_attempt_s else "") + (
                f"; {self.trouble}" if self.trouble else ""),
            f"sent       {self.sent} objects",
            f"done       {self.done} series; {self.skipped} not scored by the rules",
            f"received   {self.bytes / 1e6:.1f} MB on the disk",
            f"given up   {len(self.dead)} series"]
        for each in self.dead:
            found += [f"  {each.series}: {each.reason}",
                      f"    study {each.study}, in {each.folder}"]
        if self.dead:
            found.append("scrd-fast dicom-retry tries these again")
        return found

    def record(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def read_status(folder: Path) -> Status:
    """The status of a spool, whether a node works on it or not; raises DataError where none is."""
    with closing(Ledger(folder, create=False)) as ledger:
        counts, now = ledger.counts(), time.time()
        count, studies, newest = counts["arriving"]
        jobs, results = counts["jobs"], counts["results"]
        return Status(
            _is_locked(folder), count, studies, None if newest is None else max(0.0, now - newest),
            jobs.get(WAITING, 0), results.get(WAITING, 0),
            None if counts["due"] is None else max(0.0, counts["due"] - now), counts["trouble"],
            results.get(SENT, 0), jobs.get(DONE, 0), jobs.get(SKIPPED, 0), counts["bytes"],
            tuple(Dead(job.study, job.series, job.reason or "", str(folder / "dead" / str(job.id)))
                  for job in ledger.jobs(DEAD)))


def _is_locked(folder: Path) -> bool:
    import fcntl

    try:
        with (folder / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise DataError(f"{folder / 'lock'}: cannot be read: {error.strerror}") from error
    return False
