"""A scorer in a process of its own, as it would be for a user: in one process they would share an
allocator, and the published loop runs up to a sixth faster where something else has made malloc
keep its pages."""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import scrd_fast
from benchmarks.anomalib_peer import Anomalib
from benchmarks.peers import EagerTorch, OnnxRuntime, PlainOpenVino, PublishedLoop
from benchmarks.timing import Timed
from scrd_fast.model.checkpoint import load_checkpoint

Score = Callable[[NDArray[Any]], tuple[Any, Any]]  # a batch -> scores and maps


class Answer(NamedTuple):
    seconds: float
    scores: Any
    maps: Any


LARGEST_ERROR = {"fp32": 1e-4, "bf16": 2e-2, "int8": 0.2}


def assert_equal(ours: Answer, theirs: Answer, precision: str, plain: bool = False) -> None:
    """The same score and map.

    A plain graph that is told to compute in bf16 rounds its distances to 8 bits too: its maps are
    held to their size, not to their range.
    """
    allowed = LARGEST_ERROR[precision]
    size = np.abs(theirs.maps).max() if plain and precision == "bf16" else np.ptp(theirs.maps)
    map_error = np.abs(ours.maps - theirs.maps).max() / size
    score_error = np.abs(ours.scores - theirs.scores).max() / np.abs(theirs.scores).max()
    assert max(map_error, score_error) <= allowed, (precision, map_error, score_error)


def _scorer(kind: str, path: Path) -> Score:
    if kind == "engine":
        engine = scrd_fast.load_engine(path)

        def score(images: NDArray[Any]) -> tuple[Any, Any]:
            result = engine.score(images)
            return result.scores, result.maps

        return score
    loaded = load_checkpoint(path)
    if kind.startswith("anomalib"):
        return Anomalib(loaded.config.backbone, loaded.spec.input_size,
                        openvino=kind.endswith("OpenVINO")).score
    makers: dict[str, Any] = {
        "published loop": PublishedLoop, "onnxruntime fp32": OnnxRuntime,
        "eager bf16": partial(EagerTorch, precision="bf16", compiled=False),
        **{f"torch.compile {precision}": partial(EagerTorch, precision=precision, compiled=True)
           for precision in ("fp32", "bf16")},
    }
    make = makers.get(kind) or partial(_plain_openvino, kind)
    score_of: Score = make(loaded.model, loaded.spec).score
    return score_of


def _plain_openvino(kind: str, *arguments: Any) -> PlainOpenVino:
    return PlainOpenVino(*arguments, *kind.split())


def _serve(kind: str, path: Path, pipe: Connection) -> None:
    score = _scorer(kind, path)
    while (images := pipe.recv()) is not None:
        start = time.perf_counter()
        scores, maps = score(images)
        pipe.send(Answer(time.perf_counter() - start, scores, maps))


class Worker:
    """kind: "engine" (path: an engine file), or a peer (path: the checkpoint): "published loop",
    "eager bf16", "torch.compile fp32" or "bf16", "onnxruntime fp32", "anomalib", "anomalib
    OpenVINO", or variant and precision of PlainOpenVino, such as "static fp32"."""

    def __init__(self, kind: str, path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.kind = kind
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(kind, path, theirs),
                                        daemon=True)  # a failed test must not wait for it
        self._process.start()
        theirs.close()  # so that the end of the process is seen here

    def score(self, images: NDArray[Any]) -> Answer:
        try:
            self._pipe.send(images)
            answer: Answer = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise RuntimeError(f"{self.kind}: its process ended; what it said is above") from None
        return answer

    def timed(self, batches: Iterable[NDArray[Any]]) -> Timed:
        """A call that scores one batch after the other."""
        endless = itertools.cycle(batches)
        return lambda: self.score(next(endless)).seconds

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join()
