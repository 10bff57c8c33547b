"""Engine: scores batches through one compiled network."""

import os
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import TIMEOUT_MAX, Lock
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from scrd_fast.backends.runner import Distances, PendingScores, Runner
from scrd_fast.data.decode.image import Source
from scrd_fast.engine import current as _current
from scrd_fast.engine.engine_file import EngineFile, manifest_digest
from scrd_fast.engine.manifest import Manifest
from scrd_fast.engine.stream import Scored, stream
from scrd_fast.errors import BackendUnavailable, ClosedError, InputError, ScrdError, expect
from scrd_fast.files import as_path, is_path
from scrd_fast.metrics.decisions import Decisions
from scrd_fast.ops.image_arrays import check_range

_LATE = "result: expected scores within {} s, got none yet"


@dataclass(frozen=True)
class Result:
    """What scoring N images gives, in their order.

    scores: float32 (N,), larger is more anomalous; maps: float32 (N, H, W) or None;
    scale_weights: float32 (N, 3); p_values: float32 (N,) and anomalous: bool (N,), both None
    until decisions are calibrated; errors: index -> why that image could not be read or scored. The
    score, map, scale weights and p-value of such an image are NaN, and it is not called anomalous.
    sources: of paths, the file and place of each image, as a file may hold several; else None.
    distances: float32 (N, h, w) at each of the three scales, 1 - cosine similarity of teacher's and
    student's features, which the map is made of, before a prior judges them; None where they were
    not asked for, and on GPUs.
    """

    scores: NDArray[np.float32]
    maps: NDArray[np.float32] | None
    scale_weights: NDArray[np.float32]
    p_values: NDArray[np.float32] | None = None
    anomalous: NDArray[np.bool_] | None = None
    errors: dict[int, str] = field(default_factory=dict)
    sources: list[Source] | None = None
    distances: Distances | None = None


def _is_paths(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(map(is_path, value))


def _decide(result: Result, decisions: Decisions | None) -> Result:
    if decisions is None:
        return result
    return replace(result, p_values=decisions.p_values(result.scores),
                   anomalous=decisions.anomalous(result.scores))


class Pending:
    """The result of a batch that is being scored; made by `Engine.submit`."""

    def __init__(self, pending: PendingScores, decisions: Decisions | None = None) -> None:
        self._pending, self._decisions = pending, decisions
        self._outcome: Result | ScrdError | None = None
        self._lock = Lock()

    def __reduce__(self) -> NoReturn:
        raise InputError("pickle: expected a result, got one that is on its way; pickle what"
                         " pending.result() returns")

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._pending.done()

    def cancel(self) -> None:
        """Drop the batch where it still waits: `result` then raises CancelledError. What the
        network has begun is finished, and on a GPU that is all that was submitted."""
        self._pending.cancel()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the scores, `timeout` seconds at most, and return them; again and again.

        Raises TimeoutError, and what scoring raised, which is NotFiniteError where the network
        overflows on an image.
        """
        expect(timeout is None or timeout >= 0, "timeout", "seconds from 0", timeout)
        limit = TIMEOUT_MAX if timeout is None else min(timeout, TIMEOUT_MAX)
        end = time.monotonic() + limit
        if not self._lock.acquire(timeout=limit):
            raise TimeoutError(_LATE.format(timeout))
        try:
            if self._outcome is None:
                left = max(end - time.monotonic(), 0)
                if timeout is not None and not self._pending.wait(left):
                    raise TimeoutError(_LATE.format(timeout))
                try:
                    scores, maps, weights, distances = self._pending.get()
                    self._outcome = _decide(Result(scores, maps, weights, distances=distances),
                                            self._decisions)
                except ScrdError as error:
                    self._outcome = error
            if isinstance(self._outcome, ScrdError):
                raise self._outcome
            return self._outcome
        finally:
            self._lock.release()


class Engine:
    """A loaded engine. Made by `build_engine` or `load_engine`.

    Any number of threads may use one engine. It holds threads and the compiled network until it
    is closed, by `close`, by leaving its `with` block, or by the garbage collector (which leaves
    the engine of `scrd_fast.score` alone). Closing waits for all batches that were submitted.

    A pickled or copied engine is loaded again from its file, in the same mode and on the same
    device, and raises EngineFileError where the file has changed since.
    """

    def __init__(self, manifest: Manifest, runner: Runner, path: Path, *, mode: str = "latency",
                 device: str | None = None, mapped: EngineFile | None = None) -> None:
        """mapped: the file, where the runner still reads it."""
        self.manifest = manifest
        self._mapped = mapped
        self.spec = manifest.spec
        #: How scores are read; None until `scrd_fast.calibrate` was run.
        self.decisions = manifest.calibration
        self.path = path.absolute()  #: of its file, whatever the working directory becomes
        self._again = (str(self.path), mode, device)
        self.version = runner.version  #: of the library that runs it
        self._inputs, self._layers = runner.inputs, runner.layers
        self._scorer = runner.scorer()
        # At the interpreter's end at the latest: a thread that outlived it would crash.
        self._close = weakref.finalize(self, self._scorer.close)

    def __repr__(self) -> str:
        m = self.manifest
        return f"Engine({self.path}, {m.model.network}, {m.backend}, {m.precision})"

    def __reduce__(self) -> tuple[Any, ...]:
        from scrd_fast.engine.load import reopen_engine

        if not self._close.alive:
            raise ClosedError("pickle: expected an open engine, got one after close()")
        path, mode, device = self._again
        return reopen_engine, (path, manifest_digest(self.manifest), mode, device)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def layers(self) -> list[dict[str, Any]]:
        """Name, type, output precisions and milliseconds of each compiled layer (TensorRT)."""
        if not self._close.alive:
            raise ClosedError("layers: expected an open engine, got one after close()")
        if self._layers is None:
            raise BackendUnavailable(f"backend {self.manifest.backend!r}: it does not tell of its"
                                     " compiled layers; TensorRT does")
        return self._layers()

    def close(self) -> None:
        """Finish what was submitted and let go of threads and network; scoring ends here."""
        _current.forget(self)
        self._layers = None
        self._close()
        self._scorer.close()  # another thread may have begun it: wait for its end, too

    def submit(self, batch: Any, *, maps: bool = True, distances: bool = False,
               most_waiting: int | None = None, gather_for: float | None = None) -> Pending:
        """Begin to score a batch of images and return at once.

        batch: as in `score`, without paths; its memory must not be written to until the result
        is there. Batches are scored in order of submission, and the next one is prepared while
        the network works on the one before. most_waiting: images that may wait for the network,
        those of this batch included; None: any number. gather_for: seconds, 60 at most, that its
        images wait for others, so that those of several callers go through the network together;
        with 0 only those that wait anyhow do. A sum may then be rounded as in a batch of another
        size. None: it goes alone. On a GPU it always does. Raises InputError for arguments
        that do not fit, OverloadedError where too many wait, and EngineFileError where the file was
        written into since it was loaded.
        """
        if is_path(batch) or _is_paths(batch):
            raise InputError("batch: expected images, got paths; score(paths) reads them")
        check_range(batch, "batch")
        if self._mapped is not None:
            self._mapped.check_unchanged()
        return Pending(self._scorer.submit(self._inputs(batch, "batch"), maps, distances,
                                           most_waiting, gather_for), self.decisions)

    def waiting(self) -> int:
        """Images that wait for the network."""
        return self._scorer.waiting()

    def executions(self) -> int:
        """Batches that were given to the network so far."""
        return self._scorer.executions()

    def score(self, batch: Any, *, maps: bool = True) -> Result:
        """Score a batch of images.

        batch: a uint8/uint16 (N, H, W) or (N, H, W, 3) array or tensor, a float32 one in [0, 1],
        a list of such images of different sizes, or a list of paths, which are decoded by the
        engine's own rule (spec.decoding). Arrays on the CPU are read where they are, whatever their
        strides. Of a list of paths the files that cannot be read or scored are named in
        `Result.errors` and the rest is scored; a file of several images gives several scores, and
        `Result.sources` says which is which. Raises InputError that names
        the argument, what was expected and what came.
        """
        if is_path(batch):
            raise InputError("batch: expected a list of images or paths, got one path;"
                             f" write score([{os.fsdecode(batch)!r}])")
        if _is_paths(batch):
            return self._score_paths([as_path(path, "batch") for path in batch], maps)
        return self.submit(batch, maps=maps).result()

    def stream(self, images: Iterable[Any], *, maps: bool = True, distances: bool = False,
               ) -> Iterator[Scored]:
        """Score images one after the other, in their order, in bounded memory.

        images: paths, or images as in `score`, of different sizes, from any iterable, which may
        have no end; or an array or tensor of them. Batches are cut, and the files of the next ones
        read by threads while the network works on the one before. Of a DICOM series that is scaled
        by its percentiles all files are read first; they must follow one another. A file that
        cannot be read or scored has the reason in `Scored.error`; an image that does not fit raises
        InputError.
        """
        return stream(self, images, maps=maps, distances=distances)

    def _score_paths(self, paths: Sequence[Path], maps: bool) -> Result:
        items = []
        side = self.spec.input_size
        all_maps = np.empty((len(paths), side, side), np.float32) if maps else None
        for item in stream(self, paths, maps=maps, stacklevel=4):  # the line that calls `score`
            if all_maps is not None and item.map is not None:
                if item.index == len(all_maps):  # more images than files
                    all_maps = np.concatenate([all_maps, np.empty_like(all_maps)])
                all_maps[item.index] = item.map
            items.append(replace(item, image=None, map=None))
        count = len(items)
        return _decide(Result(
            np.array([item.score for item in items], np.float32),
            None if all_maps is None else all_maps[:count],
            np.array([item.scale_weights for item in items], np.float32).reshape(count, 3),
            errors={item.index: item.error for item in items if item.error is not None},
            sources=[item.source for item in items if item.source is not None],
        ), self.decisions)
