"""A whole archive run: what is missing in its output, scored here or on Ray, and its end."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from scrd_fast.engine.engine_file import manifest_digest
from scrd_fast.engine.load import load_engine, read_runnable
from scrd_fast.errors import OutputError
from scrd_fast.progress import Progress, silent
from scrd_fast.report.tables import open_table
from scrd_fast.serving.archive.manifest import Manifest, Rows, read_manifest
from scrd_fast.serving.archive.output import FAILED, SCORES, SUMMARY, Output, shard_name
from scrd_fast.serving.archive.places import Copies, absolute
from scrd_fast.serving.archive.ray_runner import check_ray, score_on_ray
from scrd_fast.serving.archive.scoring import score_rows
from scrd_fast.serving.archive.watchdog import Watchdog

if TYPE_CHECKING:
    from scrd_fast.engine.engine import Engine


@dataclass(frozen=True)
class Summary:
    """What an archive run gave.

    files: rows of the manifest; images: that they hold, those without a score included; failed:
    images without a score; anomalous: images called so, None where the engine is not calibrated.
    """

    files: int
    images: int
    failed: int
    anomalous: int | None
    shards: int


def score_archive(
    manifest: str, engine: str, out: str, *, ray: str | None = None, actors: int | None = None,
    rows: int = 1000, trust: bool = False, progress: Progress = silent,
) -> Summary:
    """Score all images of a manifest into a folder of Parquet shards; goes on where it was stopped.

    manifest, engine, out: local paths or URLs of fsspec. ray: "local", or the address of a cluster,
    whose nodes see the same places; None: on this machine, without Ray. actors: engines on Ray, by
    default one for each node. rows: in a shard. trust: as in `load_engine`. Raises DataError for a
    manifest that cannot be used, InputError for a folder of another run, OutputError where results
    cannot be written, and what loading the engine raises. What cannot be read or scored is a row
    with the reason.
    """
    if ray is not None:
        check_ray()
    with ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog())
        file = stack.enter_context(Copies()).fetch(engine)
        about = read_runnable(file).manifest
        digest = manifest_digest(about)
        progress(0, 0, "reading the manifest")
        listed = read_manifest(manifest, rows)
        output = Output(out)
        stack.enter_context(output.lock())
        output.claim({"manifest": listed.digest, "engine": digest, "rows": rows})
        there = output.names(SCORES)
        missing = {each for each in listed.ranges if shard_name(each) not in there}
        if missing:
            done = listed.count - sum(end - first for first, end in missing)
            shards = listed.read(missing)
            if ray is None:
                progress(0, 0, "loading the engine")
                loaded = stack.enter_context(load_engine(file, trust=trust))
                steps = score_here(loaded, shards, output)
            else:
                progress(0, 0, "starting Ray")
                steps = score_on_ray(ray, actors, about.backend, (
                    absolute(engine), digest, absolute(out)), shards, watchdog)
            _follow(steps, done, listed.count, watchdog, progress)
        return _finish(listed, output, watchdog, progress, calibrated=about.calibration is not None)


def score_here(engine: "Engine", shards: Iterator[Rows], output: Output) -> Iterator[int]:
    """Score shards one after the other in this process; gives how many rows more are done."""
    for rows in shards:
        before = 0
        for done in score_rows(engine, rows, output):
            yield done - before
            before = done


def _follow(steps: Iterator[int], done: int, total: int, watchdog: Watchdog, progress: Progress,
            ) -> None:
    """Take the steps of a runner, and tell how far it is; what comes before the first of them,
    such as loading the engine, is not in the rate."""
    first, began = 0, 0.0
    for more in steps:
        watchdog.move()
        done += more
        if not began:
            first, began = done, time.monotonic()
        seconds = max(time.monotonic() - began, 1e-3)
        progress(done, total, "scoring", images_per_s=(done - first) / seconds)


def _finish(listed: Manifest, output: Output, watchdog: Watchdog, progress: Progress, *,
            calibrated: bool) -> Summary:
    """Check that each row is in its shard, list what failed, and sum up."""
    images = failed = anomalous = 0
    damaged = []
    with output.put(FAILED) as path, open_table(path) as write:
        write(("id", "path", "frame", "reason"))
        for number, range_ in enumerate(listed.ranges):
            watchdog.move()
            progress(number, len(listed.ranges), "checking")
            found = output.read_rows(SCORES, range_, ["row", "id", "path", "frame", "anomalous",
                                                      "error"])
            if found is None or found["row"].unique().to_pylist() != list(range(*range_)):
                damaged.append(range_)
                continue
            images += len(found)
            for row in found.filter(found["error"].is_valid()).to_pylist():
                failed += 1
                write((row["id"], row["path"], row["frame"], row["error"]))
            anomalous += sum(filter(None, found["anomalous"].to_pylist()))
    for range_ in damaged:
        output.remove(SCORES, range_)
    if damaged:
        raise OutputError(f"{output.place}: expected whole shards, got {len(damaged)} that were"
                          " damaged and are removed; the same command writes them again")
    summary = Summary(listed.count, images, failed, anomalous if calibrated else None,
                      len(listed.ranges))
    with output.put(SUMMARY) as path:
        path.write_text(json.dumps(asdict(summary), indent=1) + "\n")
    return summary
