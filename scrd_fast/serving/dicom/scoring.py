"""From the files of a series to the objects of its results."""

import logging
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from scrd_fast.data.decode.quiet import silent_libraries
from scrd_fast.data.decode.series import arrange, count_kinds
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.stream import Scored
from scrd_fast.errors import DataError, InputError, OutputError
from scrd_fast.files import writing
from scrd_fast.outputs.by_series import tell_shared
from scrd_fast.outputs.dicom.write import write_dicom
from scrd_fast.serving.dicom.ledger import DEAD, SKIPPED, Job, Made
from scrd_fast.serving.dicom.rules import RULE_TAGS, SeriesRule
from scrd_fast.serving.dicom.spool import Spool, read_instance, sync_folder

log = logging.getLogger(__name__)

MOST_DEATHS = 20  # of the process while it scores a series, by its fault or another's
DISK_SECONDS = 30.0  # until a result is tried again that the disk refused


@dataclass(frozen=True)
class Scoring:
    """How series are scored; objects and uid_root: see write_dicom."""

    engine: Engine
    rule: SeriesRule
    objects: Collection[str]
    uid_root: str | None

    def do_next(self, spool: Spool, stopped: Callable[[], bool]) -> bool:
        """Score the job that is due first; False where none is. Once `stopped` says so the job is
        left as it was, for the next start."""
        job = spool.ledger.begin_scoring()
        if job is None:
            return False
        try:
            spool.settle(job)
            self._score(spool, job, stopped)
        except OutputError as error:
            log.warning("series %s waits: %s", job.series, error)
            spool.ledger.postpone(job, str(error), DISK_SECONDS)
        except (DataError, InputError, MemoryError) as error:
            self._end(spool, job, DEAD, str(error) or "its series does not fit into memory")
        return True

    def _end(self, spool: Spool, job: Job, state: str, reason: str) -> None:
        reason = _without(reason, spool)
        if state == DEAD:
            log.warning("given up, see dicom-status: series %s: %s", job.series, reason)
        with spool.ledger.change():
            spool.ledger.end_job(job, state, reason)
        spool.settle(job)

    def _score(self, spool: Spool, job: Job, stopped: Callable[[], bool]) -> None:
        if job.attempts > MOST_DEATHS:
            self._end(spool, job, DEAD, f"the process ended {MOST_DEATHS} times while it was"
                                        " scored")
            return
        paths = spool.received(job)
        arranged = arrange(paths)
        if not arranged.paths:
            self._end(spool, job, SKIPPED, count_kinds(arranged.skipped))
            return
        if reason := self._refuse(arranged.paths[0]):
            self._end(spool, job, SKIPPED, reason)
            return
        notes = [*([count_kinds(arranged.skipped)] if arranged.skipped else []), *arranged.remarks]
        items: list[Scored] = []
        for item in self.engine.stream(arranged.paths, maps=True):
            if stopped():
                spool.ledger.postpone(job, "stopped", 0)
                return
            items.append(item)
        errors = [item.error for item in items if item.error is not None]
        if len(errors) == len(items):
            self._end(spool, job, DEAD, f"none of {len(items)} images can be scored, the first"
                                        f" for this: {errors[0]}")
            return
        folder = spool.results(job)
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was not recorded
        with writing(folder):
            folder.mkdir()
        written = write_dicom(items, self.engine, folder, objects=self.objects,
                              uid_root=self.uid_root)
        with writing(folder):
            sync_folder(folder)
            sync_folder(folder.parent)
        notes += tell_shared(written.notes)
        spool.ledger.record_scored(job, [_name(path) for path in written.files], [
            _without(note, spool) for note in notes])
        spool.settle(job)

    def _refuse(self, path: Path) -> str | None:
        import pydicom

        with silent_libraries():
            return self.rule.refuse(pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=RULE_TAGS))


def _without(text: str, spool: Spool) -> str:
    """What is told of files without the folder that all are in."""
    return text.replace(f"{spool.folder / 'received'}/", "")


def _name(path: Path) -> Made:
    instance = read_instance(path)
    return Made(instance.uid, instance.sop_class, path.name)
