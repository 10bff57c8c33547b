"""Archives on Ray: paths travel and pixels do not; each actor has an engine of its own."""

import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from scrd_fast.backends.registry import backend_of
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.engine_file import manifest_digest
from scrd_fast.engine.load import open_engine
from scrd_fast.errors import (
    BackendUnavailable,
    DataError,
    EngineFileError,
    InputError,
    ScrdError,
    expect,
    explain_missing,
)
from scrd_fast.progress import duration
from scrd_fast.report.tables import list_cells
from scrd_fast.serving.archive.manifest import Rows
from scrd_fast.serving.archive.output import RESULT_SCHEMA, RESULTS, Output, make_table
from scrd_fast.serving.archive.places import Copies, absolute
from scrd_fast.serving.archive.scoring import score_places, score_rows
from scrd_fast.serving.archive.watchdog import Watchdog

_TELL_SECONDS = 1.0  # between two messages of an actor about how far it is
_MOST_DEATHS = 5  # of processes at the same shard, or while they load the engine
_CONNECT_SECONDS = 10.0
_WAIT_SECONDS = 5.0  # for messages, until an interrupt is heard



class _Actor:
    """What scores shards in a process of Ray's."""

    def load(self, engine: str, digest: str, out: str) -> None:
        """digest: of the engine that the driver sees."""
        self._copies = Copies()
        self._engine, _ = open_engine(self._copies.fetch(engine))
        self._output = Output(out)
        if manifest_digest(self._engine.manifest) != digest:
            raise EngineFileError(f"{engine}: expected the same engine file on each node, got"
                                  " another one on one of them")

    def score(self, rows: Rows) -> Iterator[int]:
        """How many of the rows are done, now and again, and when all are."""
        done, told = 0, time.monotonic()
        with Watchdog() as watchdog:
            for done in score_rows(self._engine, rows, self._output):
                watchdog.move()
                if done < len(rows.ids) and time.monotonic() - told > _TELL_SECONDS:
                    told = time.monotonic()
                    yield done
        yield done


@dataclass
class _Worker:
    """An actor. asked: what it was asked for and has not answered yet: to load the engine or, with
    `rows`, to score them."""

    actor: Any
    node: int
    asked: Any
    rows: Rows | None = None
    done: int = 0
    moved: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        what = self.rows or ("to start and load the engine" if self.asked is not None else "idle")
        return f"{what} (for {duration(time.monotonic() - self.moved)})"


class _Pool:
    """Actors, and the shards that they score. One that dies is replaced, and its shard is given to
    another, which goes on with it."""

    def __init__(self, actors: int | None, arguments: tuple[str, str, str]) -> None:
        import ray

        self._arguments = arguments
        # Each node by its id, with the CPUs that it offers.
        self._nodes = [(node["NodeID"], node["Resources"]["CPU"]) for node in ray.nodes()
                       if node["Alive"] and node["Resources"].get("CPU")]
        expect(bool(self._nodes), "--ray", "a cluster with CPUs", "one without")
        count = actors or len(self._nodes)
        places = [i % len(self._nodes) for i in range(count)]
        self._on_node = Counter(places)
        self._workers = [self._start(node) for node in places]
        self._again: deque[Rows] = deque()
        self._deaths: Counter[int | None] = Counter()

    def _start(self, node: int) -> _Worker:
        """An actor that takes its share of a node's CPUs, or of another's where that one is gone.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        name, cpus = self._nodes[node]
        share = cpus / self._on_node[node]
        actor = ray.remote(_Actor).options(  # Ray knows parts of one CPU, and whole ones
            num_cpus=int(share) if share >= 1 else int(100 * share) / 100, max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=True)).remote()
        return _Worker(actor, node, actor.load.remote(*self._arguments))

    def describe(self) -> str:
        return "; ".join(f"actor {number}: {worker}" for number, worker in enumerate(self._workers))

    def run(self, shards: Iterator[Rows]) -> Iterator[int]:
        """How many rows more are done, again and again, until all are."""
        import ray

        while True:
            for worker in self._workers:
                rows = None
                if worker.asked is None:
                    rows = self._again.popleft() if self._again else next(shards, None)
                if rows is not None:
                    worker.asked = worker.actor.score.remote(rows)
                    worker.rows, worker.done, worker.moved = rows, 0, time.monotonic()
            # All of them idle, or starting although nothing is left.
            if not any(worker.rows for worker in self._workers) and any(
                    worker.asked is None for worker in self._workers):
                return
            ready, _ = ray.wait([worker.asked for worker in self._workers
                                 if worker.asked is not None], timeout=_WAIT_SECONDS)
            for worker in self._workers:
                if any(worker.asked is each for each in ready):
                    yield self._hear(worker)

    def _hear(self, worker: _Worker) -> int:
        """Take what an actor answers; how many rows more are done."""
        import ray

        rows, before = worker.rows, worker.done
        try:
            if rows is None:
                ray.get(worker.asked)
                worker.asked = None
            else:
                worker.done = ray.get(next(worker.asked))
                if worker.done == len(rows.ids):
                    worker.asked = worker.rows = None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ScrdError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:  # the process is gone, or its node
            shard = None if rows is None else rows.first
            self._deaths[shard] += 1
            if self._deaths[shard] == _MOST_DEATHS:
                raise DataError(
                    f"{rows or 'the engine'}: the process that worked on it ended {_MOST_DEATHS}"
                    " times, for lack of memory or by a fault in a library; Ray's log of it says"
                    " more") from error
            ray.kill(worker.actor)
            if rows is not None:
                self._again.append(rows)
            self._workers[self._workers.index(worker)] = self._start(worker.node)
            return -before
        worker.moved = time.monotonic()
        return worker.done - before


def check_ray() -> None:
    """Raise MissingExtra where Ray is not installed."""
    with explain_missing("--ray", "ray"):
        import ray  # noqa: F401


def score_on_ray(
    address: str, actors: int | None, backend: str, arguments: tuple[str, str, str],
    shards: Iterator[Rows], watchdog: Watchdog,
) -> Iterator[int]:
    """Score shards by actors of Ray; gives how many rows more are done, fewer where one has died.

    arguments: of `_Actor.load`. Raises InputError where there is no such cluster, and what loading
    the engine and writing the results raise.
    """
    import ray

    if backend_of(backend).on_gpu:
        raise BackendUnavailable(f"--ray: expected an engine for CPUs, got one for {backend}")
    host, _, port = address.rpartition(":")
    wanted = "local, auto or the HOST:PORT of a cluster that runs"
    expect(address in ("local", "auto") or (port.isdigit() and "/" not in host), "--ray", wanted,
           repr(address))
    try:
        if port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=True, logging_level=logging.ERROR,
                 **({"include_dashboard": False} if address == "local" else {}))
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"--ray: expected {wanted}, got {address!r}: {reason}") from error
    try:
        pool = _Pool(actors, arguments)
        watchdog.what = pool.describe
        yield from pool.run(shards)
    finally:
        ray.shutdown()


class _ScoreBatch:
    """What Ray Data calls with batches of rows."""

    def __init__(self, engine: str) -> None:
        self._copies = Copies()
        self._engine, _ = open_engine(self._copies.fetch(engine))

    def __call__(self, batch: pa.Table) -> pa.Table:
        numbers, results = [], []
        with Watchdog() as watchdog:
            for number, _, row in score_places(self._engine, batch["path"].to_pylist()):
                watchdog.move()
                numbers.append(number)
                results.append(list_cells(row, RESULTS))
        table, made = batch.take(np.array(numbers, np.int64)), make_table(results, RESULT_SCHEMA)
        for column in RESULT_SCHEMA:
            table = table.append_column(column, made[column.name])
        return table


def score_dataset(
    dataset: Any, engine: Engine | str | os.PathLike[str], *, actors: int = 1,
    cpus: float | None = None, batch_size: int = 256,
) -> Any:
    """Score the files that a ray.data.Dataset names; returns one with the results as columns.

    dataset: its column `path` has local paths, as all nodes see them, or URLs of fsspec; all its
    columns stay. engine: the file, or where it lies as a URL; of a loaded one its file. actors:
    engines, each in a process of its own with `cpus` CPUs (by default Ray Data's 1) for Ray's
    scheduling, which may use all cores of its machine. batch_size: rows that an actor takes
    together. The columns frame, score, p_value, anomalous, weight_1 to weight_3 and error are as in
    tables of `scrd-fast score`: a file of several images gives several rows, one that cannot be
    read or scored the reason in `error`. Raises InputError where there is no column `path`, and
    MissingExtra without Ray.
    """
    with explain_missing("score_dataset", "ray"):
        import ray.data
    names = dataset.columns() or []
    expect("path" in names, "dataset", "a column path", ", ".join(names))
    place = str(engine.path) if isinstance(engine, Engine) else absolute(os.fspath(engine))
    return dataset.map_batches(
        _ScoreBatch, fn_constructor_kwargs={"engine": place}, batch_format="pyarrow",
        batch_size=batch_size, num_cpus=cpus, compute=ray.data.ActorPoolStrategy(size=actors))
