"""Scoring the rows of a manifest: from places to results, and to the shard that holds them."""

import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from scrd_fast.engine.engine import Engine
from scrd_fast.engine.stream import BATCH
from scrd_fast.report.rows import ScoreRow, make_row
from scrd_fast.report.tables import list_cells
from scrd_fast.serving.archive.manifest import Rows
from scrd_fast.serving.archive.output import BEGUN, RESULTS, SCORES, Output
from scrd_fast.serving.archive.places import Copies

SAVE_SECONDS = 20.0  # after which results that no shard holds yet are saved
LONGEST = 10.0  # seconds more that saving waits for the end of a batch

Result = tuple[Any, ...]  # of an image: row, id, path and RESULTS, as in output.SCHEMA


def score_places(engine: Engine, places: Sequence[str]) -> Iterator[tuple[int, bool, ScoreRow]]:
    """Score files, local ones and those of URLs, which are fetched ahead; in their order.

    Gives for each image the number of its file; whether it begins something new, a file that
    belongs to no DICOM series or a series; and its results, which say why where there are none.
    """
    with Copies() as copies, warnings.catch_warnings():
        # Remarks on files quote their paths, which may name patients: not for the logs of a
        # cluster. `scrd-fast score` shows them.
        warnings.simplefilter("ignore", UserWarning)
        number, last = -1, None
        series: str | None = None
        for item in engine.stream(copies.paths(places), maps=False):
            source = item.source
            assert source is not None
            if (last is None or source.path != last.path or source.frame is None
                    or last.frame is None or source.frame <= last.frame):
                if last is not None:
                    copies.remove(last.path)
                number += 1
                # A file that cannot be read may lie within a series.
                before, series = series, source.series if item.error is None else (
                    source.series or series)
                begins = series is None or series != before
            else:
                begins = False
            row = make_row(item)
            if source.path in copies.failed:
                row = ScoreRow(row.image, error=copies.failed[source.path])
            last = source
            yield number, begins, row


def score_rows(engine: Engine, rows: Rows, output: Output,
               save_seconds: float = SAVE_SECONDS) -> Iterator[int]:
    """Score rows and write their shard; gives, after each file, how many rows are done.

    Goes on where another was stopped. Results are saved every `save_seconds`, at the next end of a
    batch, so that those of the rest do not depend on where that was; 10 seconds later at the next
    end of a file, too. A DICOM series is not cut: its intensities may be scaled together.
    """
    range_ = rows.first, rows.first + len(rows.ids)
    begun = output.read_rows(BEGUN, range_)
    results: list[Result] = [] if begun is None else [
        tuple(each.values()) for each in begun.to_pylist()]
    begin = results[-1][0] + 1 - rows.first if results else 0
    done, saved = begin, time.monotonic()
    yield done
    for count, (number, begins, row) in enumerate(score_places(engine, rows.places[begin:])):
        if begin + number != done:
            done = begin + number
            waited = time.monotonic() - saved
            if begins and waited > save_seconds and (
                    count % BATCH == 0 or waited > save_seconds + LONGEST):
                output.write_rows(BEGUN, range_, results)
                saved = time.monotonic()
            yield done
        results.append((rows.first + done, rows.ids[done], rows.paths[done],
                        *list_cells(row, RESULTS)))
    assert done == len(rows.ids) - 1, "a result for each file"
    output.write_rows(SCORES, range_, results)
    output.remove(BEGUN, range_)
    yield len(rows.ids)

