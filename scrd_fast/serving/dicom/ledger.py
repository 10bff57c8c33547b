"""The database of a spool: what was received, what becomes of it, and what happened when.

SQLite in its write-ahead mode: what is committed stays over a kill of the process, and what is
committed durably over a loss of power. No name and no number of a patient is in it.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrd_fast.errors import DataError, OutputError

VERSION = 1
NAME = "spool.sqlite"
_BUSY_SECONDS = 30.0  # that another process, such as dicom-retry, may hold the database
_DAY = 86400.0

_SCHEMA = """
CREATE TABLE instance (
    uid TEXT PRIMARY KEY, class TEXT NOT NULL, study TEXT NOT NULL, series TEXT NOT NULL,
    bytes INTEGER NOT NULL, received REAL NOT NULL, kept INTEGER NOT NULL,
    job INTEGER REFERENCES job(id));
CREATE INDEX instance_of_job ON instance(job, study, series);
CREATE INDEX instance_with_file ON instance(job, bytes) WHERE bytes > 0;
CREATE TABLE job (
    id INTEGER PRIMARY KEY, study TEXT NOT NULL, series TEXT NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL, reason TEXT);
CREATE INDEX job_of_state ON job(state, due);
CREATE TABLE result (
    uid TEXT PRIMARY KEY, class TEXT NOT NULL, file TEXT NOT NULL,
    job INTEGER NOT NULL REFERENCES job(id), state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL, reason TEXT);
CREATE INDEX result_of_job ON result(job);
CREATE INDEX result_of_state ON result(state, due);
CREATE TABLE commitment (
    id INTEGER PRIMARY KEY, peer TEXT NOT NULL, report TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL);
CREATE TABLE event (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, what TEXT NOT NULL, peer TEXT, study TEXT,
    series TEXT, instance TEXT, detail TEXT);
"""

AWAY, BACK = "destination away", "destination back"  # events
# Of a job: to be scored; its results to be sent; all of them sent; not to be scored by the rules;
# given up. Of a result: to be sent; sent; given up.
WAITING, SCORED, DONE, SKIPPED, DEAD, SENT = "waiting", "scored", "done", "skipped", "dead", "sent"


@dataclass(frozen=True)
class Instance:
    """An object that came in, by its unique identifiers."""

    uid: str
    sop_class: str
    study: str
    series: str


@dataclass(frozen=True)
class Job:
    """The instances of a series that are scored together."""

    id: int
    study: str
    series: str
    state: str
    attempts: int
    reason: str | None


@dataclass(frozen=True)
class Made:
    """An object made of results; file: its name."""

    uid: str
    sop_class: str
    file: str


@dataclass(frozen=True)
class ToSend:
    """A result that has not arrived yet."""

    made: Made
    job: Job
    attempts: int


class Ledger:
    """See the module. One connection, for all threads of the process."""

    def __init__(self, folder: Path, *, create: bool) -> None:
        """Raises DataError where there is no spool, unless it may be created, and for one of
        another version of this package."""
        path = folder / NAME
        if not create and not path.is_file():
            raise DataError(f"{folder}: expected the spool of a DICOM node, got no {NAME} in it")
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            if create and not self._one("SELECT count(*) FROM sqlite_master"):
                with self.change():
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA user_version = {VERSION}")
            if self._version() != VERSION:
                raise DataError(f"{path}: expected a spool of version {VERSION}, got version"
                                f" {self._version()}")
        except sqlite3.Error as error:
            raise DataError(f"{path}: expected the database of a spool, got: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _version(self) -> int:
        return int(self._one("PRAGMA user_version"))

    def _read(self, query: str, *values: Any) -> list[Any]:
        """All rows of a query; raises OutputError where the database cannot be read."""
        try:
            with self._lock:
                return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise OutputError(f"{NAME}: cannot be read: {error}") from error

    def _one(self, query: str, *values: Any) -> Any:
        rows = self._read(query, *values)
        return rows[0][0] if rows else None

    @contextmanager
    def change(self, *, durable: bool = True) -> Iterator[None]:
        """All that is done inside, or nothing of it. durable: it is on the disk at the end, else
        at that of the next durable change. Raises OutputError for what the disk refuses."""
        with self._lock:
            try:
                self._connection.execute(
                    f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise OutputError(f"{NAME}: cannot be written: {error}") from error

    def tell(self, what: str, *, peer: str | None = None, study: str | None = None,
             series: str | None = None, instance: str | None = None, detail: str | None = None
             ) -> None:
        """Add an event, as a part of a change."""
        self._connection.execute(
            "INSERT INTO event (time, what, peer, study, series, instance, detail)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (time.time(), what, peer, study, series, instance, detail))

    # What came in

    def knows(self, uid: str) -> bool:
        """Whether the instance was accepted before."""
        return self._one("SELECT 1 FROM instance WHERE uid = ?", uid) is not None

    def add(self, instance: Instance, size: int, received: float, *, kept: bool) -> None:
        """An instance whose file is there; kept: it is never deleted. As a part of a change."""
        self._connection.execute(
            "INSERT INTO instance VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            (instance.uid, instance.sop_class, instance.study, instance.series, size, received,
             kept))

    def is_kept(self, uid: str, sop_class: str) -> bool:
        """Whether an instance of this class was accepted to be kept."""
        return bool(self._one("SELECT kept FROM instance WHERE uid = ? AND class = ?", uid,
                              sop_class))

    def forget(self, uid: str) -> None:
        """An instance whose file is gone; as a part of a change."""
        self._connection.execute("DELETE FROM instance WHERE uid = ?", (uid,))

    def held_bytes(self) -> int:
        """Of the received files that are not done with."""
        return int(self._one(
            "SELECT coalesce(sum(bytes), 0) FROM instance LEFT JOIN job ON instance.job = job.id"
            " WHERE bytes > 0 AND coalesce(job.state, '') NOT IN (?, ?)", DONE, SKIPPED))

    def without_job(self) -> list[str]:
        """The UIDs of the instances of studies that are not complete."""
        return [uid for uid, in self._read("SELECT uid FROM instance WHERE job IS NULL")]

    def make_jobs(self, quiet_seconds: float) -> int:
        """A job for each series of the studies to which nothing was added for so long; how many."""
        now = time.time()
        complete = ("SELECT study, series, count(*) FROM instance WHERE job IS NULL AND study IN ("
                    " SELECT study FROM instance WHERE job IS NULL GROUP BY study"
                    " HAVING max(received) <= ?) GROUP BY study, series ORDER BY min(received)")
        if not self._read(complete, now - quiet_seconds):
            return 0  # as nearly always, and nothing waits for this
        with self.change():
            found = self._read(complete, now - quiet_seconds)
            for study, series, count in found:
                later = self._one("SELECT count(*) FROM job WHERE series = ? AND study = ?",
                                  series, study)
                job = self._connection.execute(
                    "INSERT INTO job (study, series, state, due) VALUES (?, ?, ?, ?)",
                    (study, series, WAITING, now)).lastrowid
                self._connection.execute(
                    "UPDATE instance SET job = ? WHERE job IS NULL AND study = ? AND series = ?",
                    (job, study, series))
                self.tell("complete", study=study, series=series,
                          detail=f"{count} instances" + (
                              "; others of the series came earlier and were scored without these"
                              if later else ""))
        return len(found)

    # Jobs

    def _jobs(self, where: str, *values: Any) -> list[Job]:
        return [Job(*row) for row in self._read(
            f"SELECT id, study, series, state, attempts, reason FROM job WHERE {where}", *values)]

    def jobs(self, state: str) -> list[Job]:
        return self._jobs("state = ? ORDER BY id", state)

    def unsettled(self) -> list[Job]:
        """Those whose files may not be where they belong."""
        return self._jobs(
            "state IN (?, ?, ?) OR EXISTS (SELECT 1 FROM instance WHERE instance.job = job.id AND"
            " bytes > 0 AND NOT kept) ORDER BY id", WAITING, SCORED, DEAD)

    def job(self, number: int) -> Job:
        return self._jobs("id = ?", number)[0]

    def begin_scoring(self) -> Job | None:
        """A job that is due, one attempt later; None where none is. Those with the fewest attempts
        come first: one that kills the process each time holds up no other."""
        found = self._jobs("state = ? AND due <= ? ORDER BY attempts, due, id LIMIT 1", WAITING,
                           time.time())
        if not found:
            return None
        with self.change():
            self._connection.execute("UPDATE job SET attempts = attempts + 1 WHERE id = ?",
                                     (found[0].id,))
        return self.job(found[0].id)

    def end_job(self, job: Job, state: str, reason: str | None = None) -> None:
        """A job is done, skipped or dead; as a part of a change."""
        self._connection.execute("UPDATE job SET state = ?, reason = ? WHERE id = ?",
                                 (state, reason, job.id))
        self.tell(state, study=job.study, series=job.series, detail=reason)

    def postpone(self, job: Job, reason: str, seconds: float) -> None:
        """Score a job later, by no fault of its own: the attempt does not count."""
        with self.change():
            self._connection.execute(
                "UPDATE job SET due = ?, reason = ?, attempts = attempts - 1 WHERE id = ?",
                (time.time() + seconds, reason, job.id))
            self.tell("postponed", study=job.study, series=job.series, detail=reason)

    def record_scored(self, job: Job, made: Sequence[Made], notes: Sequence[str]) -> None:
        """The results of a job, which lie on the disk; without any the job is done."""
        with self.change():
            self._connection.executemany(
                "INSERT INTO result (uid, class, file, job, state, due) VALUES (?, ?, ?, ?, ?, ?)",
                [(each.uid, each.sop_class, each.file, job.id, WAITING, time.time())
                 for each in made])
            self._connection.execute("UPDATE job SET state = ?, reason = NULL WHERE id = ?",
                                     (SCORED, job.id))
            self.tell("scored", study=job.study, series=job.series,
                      detail="; ".join([f"{len(made)} objects", *notes]))
            if not made:
                self.end_job(job, DONE)

    def instances(self, job: Job, *, kept: bool = True) -> list[str]:
        """The UIDs of what a job is made of, in the order in which it came; without those that are
        kept, if that is asked for."""
        return [uid for uid, in self._read(
            "SELECT uid FROM instance WHERE job = ? AND kept <= ? ORDER BY received, uid", job.id,
            kept)]

    def release(self, job: Job) -> None:
        """The files of a job are deleted, but for those that are kept."""
        with self.change(durable=False):
            self._connection.execute("UPDATE instance SET bytes = 0 WHERE job = ? AND NOT kept",
                                     (job.id,))

    # Results

    def files(self, job: Job, *states: str) -> list[str]:
        """The names of a job's results in one of the states."""
        return [name for name, in self._read(
            f"SELECT file FROM result WHERE job = ? AND state IN ({', '.join('?' * len(states))})"
            " ORDER BY file", job.id, *states)]

    def to_send(self, most: int) -> list[ToSend]:
        """Results that are due, the oldest first."""
        rows = self._read(
            "SELECT uid, class, file, job, attempts FROM result WHERE state = ? AND due <= ?"
            " ORDER BY due, job, file LIMIT ?", WAITING, time.time(), most)
        jobs = {row[3]: self.job(row[3]) for row in rows}
        return [ToSend(Made(*row[:3]), jobs[row[3]], row[4]) for row in rows]

    def record_sent(self, sent: ToSend, peer: str) -> bool:
        """A result has arrived; with the last one its job is over: then True."""
        with self.change():
            self._set_result(sent, SENT, None)
            self.tell("sent", peer=peer, study=sent.job.study, series=sent.job.series,
                      instance=sent.made.uid)
            return self._end_if_over(sent.job)

    def record_refused(self, refused: ToSend, peer: str, reason: str, later: float | None) -> bool:
        """A result was not taken; it is tried again so many seconds later, None for never. True
        where its job is over."""
        with self.change():
            if later is None:
                self._set_result(refused, DEAD, reason)
            else:
                self._connection.execute(
                    "UPDATE result SET attempts = attempts + 1, due = ?, reason = ? WHERE uid = ?",
                    (time.time() + later, reason, refused.made.uid))
            self.tell("refused" if later is not None else "given up", peer=peer,
                      study=refused.job.study, series=refused.job.series,
                      instance=refused.made.uid, detail=reason)
            return self._end_if_over(refused.job)

    def _set_result(self, result: ToSend, state: str, reason: str | None) -> None:
        self._connection.execute(
            "UPDATE result SET state = ?, reason = ?, attempts = attempts + 1 WHERE uid = ?",
            (state, reason, result.made.uid))

    def _end_if_over(self, job: Job) -> bool:
        of_state = "SELECT coalesce(reason, '') FROM result WHERE job = ? AND state = ?"
        if self._one(of_state, job.id, WAITING) is not None:
            return False
        reason = self._one(of_state, job.id, DEAD)
        self.end_job(job, DONE if reason is None else DEAD, reason)
        return True

    # What is asked from outside

    def retry(self, study: str | None) -> int:
        """Let dead jobs, of one study or of all, be tried again; how many."""
        with self.change():
            found = self._jobs("state = ? AND ? IN (study, '')", DEAD, study or "")
            for job in found:
                again = self._connection.execute(
                    "UPDATE result SET state = ?, attempts = 0, due = ? WHERE job = ? AND state"
                    " = ?", (WAITING, time.time(), job.id, DEAD)).rowcount
                self._connection.execute(
                    "UPDATE job SET state = ?, attempts = 0, due = ? WHERE id = ?",
                    (SCORED if again else WAITING, time.time(), job.id))
                self.tell("tried again", study=job.study, series=job.series)
        return len(found)

    def prune(self, days: float) -> None:
        """Forget what was over so long ago: its instances would be accepted as new."""
        before = time.time() - days * _DAY
        over = ("SELECT id FROM job WHERE state IN (?, ?) AND NOT EXISTS (SELECT 1 FROM instance"
                " WHERE instance.job = job.id AND (received > ? OR bytes > 0))")
        with self.change():
            jobs = self._read(over, DONE, SKIPPED, before)
            for table, column in (("result", "job"), ("instance", "job"), ("job", "id")):
                self._connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", jobs)
            self._connection.execute("DELETE FROM event WHERE time < ?", (before,))

    def counts(self) -> dict[str, Any]:
        """How much there is of what; see status.Status."""
        return {
            "jobs": dict(self._read("SELECT state, count(*) FROM job GROUP BY state")),
            "results": dict(self._read("SELECT state, count(*) FROM result GROUP BY state")),
            "arriving": self._read("SELECT count(*), count(DISTINCT study), max(received)"
                                   " FROM instance WHERE job IS NULL")[0],
            "bytes": self.held_bytes(),
            "due": self._one("SELECT min(due) FROM result WHERE state = ?", WAITING),
            "trouble": self._trouble()}

    def _trouble(self) -> str | None:
        """Why results wait: the destination is away, or does not take one of them."""
        last = self._read("SELECT what, detail FROM event WHERE what IN (?, ?) ORDER BY id DESC"
                          " LIMIT 1", AWAY, BACK)
        if last and last[0][0] == AWAY:
            return f"the destination cannot be reached: {last[0][1]}"
        found: str | None = self._one("SELECT reason FROM result WHERE state = ? AND reason IS NOT"
                                      " NULL ORDER BY due DESC", WAITING)
        return found

    def events(self) -> Iterator[dict[str, Any]]:
        """All that happened, the oldest first; without what does not apply."""
        names = "time", "what", "peer", "study", "series", "instance", "detail"
        after = 0
        while True:
            rows = self._read(f"SELECT id, {', '.join(names)} FROM event WHERE id > ? ORDER BY id"
                              " LIMIT 1000", after)
            for row in rows:
                yield {name: value for name, value in zip(names, row[1:], strict=True)
                       if value is not None}
            if not rows:
                return
            after = rows[-1][0]

    # Storage commitment

    def add_commitment(self, peer: str, report: str) -> None:
        with self.change():
            self._connection.execute("INSERT INTO commitment (peer, report, due) VALUES (?, ?, ?)",
                                     (peer, report, time.time()))
            self.tell("commitment asked", peer=peer)

    def due_commitment(self) -> tuple[int, str, str, int] | None:
        """(id, peer, report, attempts) of the report that is due first."""
        rows = self._read("SELECT id, peer, report, attempts FROM commitment WHERE due <= ?"
                          " ORDER BY due LIMIT 1", time.time())
        return rows[0] if rows else None

    def end_commitment(self, number: int, peer: str, detail: str, later: float | None) -> None:
        """A report was sent, or is given up; or it is tried again so many seconds later."""
        with self.change():
            if later is None:
                self._connection.execute("DELETE FROM commitment WHERE id = ?", (number,))
            else:
                self._connection.execute(
                    "UPDATE commitment SET attempts = attempts + 1, due = ? WHERE id = ?",
                    (time.time() + later, number))
            self.tell("commitment", peer=peer, detail=detail)
