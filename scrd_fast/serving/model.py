"""A model as the service offers it: an engine behind the protocol's inputs and outputs.

Decoding files, looking through large batches and scoring are done by threads, the rest of a request
on the event loop. The scorer's own queue gathers what several clients ask for, bounds what waits
and drops what nobody waits for.
"""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.engine.engine import Engine, Pending, Result
from scrd_fast.errors import (
    DeviceFaultError,
    EngineFileError,
    InputError,
    OverloadedError,
    ScrdError,
    expect,
)
from scrd_fast.machine import count_cores
from scrd_fast.serving.files import read_image
from scrd_fast.serving.messages import InferAnswer, InferRequest
from scrd_fast.serving.pace import Pace
from scrd_fast.serving.tensors import BYTES, Tensor
from scrd_fast.serving.waiter import Waiter

IMAGES, FILES = "images", "files"
MAP = "map"  # given where it is asked for by name alone: it is 100 times the rest
_PIXELS = ("UINT8", "UINT16", "FP32")
# A larger batch is looked through for NaN by a thread: it takes the event loop a millisecond else.
_INLINE_BYTES = 1 << 20
# A request is taken where half its time would do: what is taken shall be answered in time.
_HEADROOM = 0.5


class DeadlineError(ScrdError):
    """A request's time was over before its scores were there."""


class BusyError(OverloadedError):
    """Too much waits before a request."""

    def __init__(self, message: str, retry_after: float) -> None:
        """retry_after: seconds until what waits now is done."""
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Terms:
    """On which a model takes requests.

    most_waiting: images that may wait for it. gather_for: seconds that an image waits for others at
    most, so that they go through the network together. most_seconds: of a request that names no
    deadline, and of any.
    """

    most_waiting: int = 256
    gather_for: float = 0.0
    most_seconds: float = 60.0

    def __post_init__(self) -> None:
        expect(self.most_waiting >= 1, "most_waiting", "images from 1", self.most_waiting)
        expect(0 <= self.gather_for <= 60, "gather_for", "seconds from 0 to 60", self.gather_for)
        expect(0 < self.most_seconds < math.inf, "most_seconds", "seconds above 0",
               self.most_seconds)


@dataclass(frozen=True)
class Output:
    """shape: -1 for the number of images."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ServedModel:
    """An engine that answers requests of the protocol."""

    def __init__(self, name: str, version: str, engine: Engine, terms: Terms) -> None:
        self.name, self.version, self.engine, self.terms = name, version, engine, terms
        self._waiter = Waiter(name)
        self._decoders = ThreadPoolExecutor(count_cores(), "decode")
        self._submitters = ThreadPoolExecutor(1, "submit")
        # Of images of files that are in memory, which may be a thousand times the file's size.
        self._decoded = asyncio.Semaphore(2 * count_cores())
        self.fault: str | None = None  # why nothing can be scored any more
        self._pace = Pace()
        self._active = 0  # requests
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def platform(self) -> str:
        manifest = self.engine.manifest
        return f"scrd_fast_{manifest.backend}_{manifest.precision}"

    @property
    def inputs(self) -> tuple[Output, ...]:
        """One of them makes a request. Pixels may as well be UINT16 or FP32 in [0, 1], and grey,
        without the last dimension."""
        return (Output(IMAGES, "UINT8", (-1, -1, -1, 3)), Output(FILES, BYTES, (-1,)))

    @property
    def outputs(self) -> tuple[Output, ...]:
        side = self.engine.spec.input_size
        known = (Output("p_value", "FP32", (-1,)), Output("anomalous", "BOOL", (-1,)))
        return (Output("score", "FP32", (-1,)), *(known if self.engine.decisions else ()),
                Output("scale_weights", "FP32", (-1, 3)), Output(MAP, "FP32", (-1, side, side)),
                Output("error", BYTES, (-1,)))

    @property
    def parameters(self) -> dict[str, Any]:
        """How scores and maps are read: `threshold`, above which an image is called anomalous, and
        `map_scale`, between whose values pixels have colour; what calibration told."""
        decisions = self.engine.decisions
        if decisions is None:
            return {}
        scale = {} if decisions.maps is None else {"map_scale": list(decisions.maps.scale)}
        return {"threshold": decisions.threshold, **scale}

    @property
    def pending(self) -> int:
        """Images that were taken and are not scored yet."""
        return self._pace.images

    async def close(self) -> None:
        """Answer what was taken, then let go of the engine."""
        await self._idle.wait()
        for let_go in (self._decoders.shutdown, self._submitters.shutdown, self.engine.close,
                       self._waiter.close):
            await asyncio.to_thread(let_go)

    async def infer(self, request: InferRequest, seconds: float | None = None) -> InferAnswer:
        """Score a request's images.

        seconds: until nobody waits for the answer any more. Raises InputError, OverloadedError at
        once where too many images wait, DeadlineError, and what scoring raises. Cancelled, it drops
        what still waits.
        """
        wanted = self._wanted_outputs(request)
        tensor = _only_input(request)
        limit = self.terms.most_seconds if seconds is None else min(seconds,
                                                                    self.terms.most_seconds)
        if not limit > 0:
            raise DeadlineError("deadline: expected time to score, got none left")
        count = tensor.shape[0] if tensor.shape else 0
        expect(count > 0, tensor.name, "one image at least", f"shape {list(tensor.shape)}")
        self._check_room(count, limit)
        scoring = self._score_files if tensor.name == FILES else self._score_images
        self._active += 1
        self._idle.clear()
        self._pace.begin(count)
        try:
            async with asyncio.timeout(limit):
                result = await scoring(tensor, MAP in wanted)
            self._pace.measure(count)
        except TimeoutError:
            raise DeadlineError(f"deadline: expected scores within {limit:g} s, got none yet"
                                ) from None
        except (EngineFileError, DeviceFaultError) as error:
            self.fault = f"{type(error).__name__}; the service's log says more"
            raise
        finally:
            self._pace.end(count)
            self._active -= 1
            if self._active == 0:
                self._idle.set()
        outputs = self._tensors(result, count)
        return InferAnswer(self.name, self.version, request.id,
                           tuple(outputs[name] for name in wanted), count - len(result.errors))

    def count_values(self, request: InferRequest, name: str) -> int:
        """How many values an output of a request's answer has, 0 where it is not wanted."""
        wanted = [each.name for each in request.outputs]
        if name not in wanted if wanted else name == MAP:
            return 0
        count = sum(each.shape[0] for each in request.inputs if each.shape)
        return sum(count * math.prod(each.shape[1:]) for each in self.outputs if each.name == name)

    def _wanted_outputs(self, request: InferRequest) -> list[str]:
        names = [output.name for output in self.outputs]
        wanted = [output.name for output in request.outputs]
        for name in wanted:
            expect(name in names, "outputs", f"some of {', '.join(names)}", repr(name)[:60])
        expect(len(set(wanted)) == len(wanted), "outputs", "each once", f"{len(wanted)} names")
        return wanted or [name for name in names if name != MAP]

    def _check_room(self, count: int, seconds: float) -> None:
        most, pace = self.terms.most_waiting, self._pace
        expect(count <= most, "inputs", f"at most {most} images in a request", count)
        if count + pace.images > most:
            raise BusyError(f"model {self.name!r}: expected at most {most} images waiting, got"
                            f" {pace.images} others and {count} of this request", pace.seconds(0))
        # A request that has the model for itself is taken, however long it takes.
        if pace.images and pace.seconds(count) > _HEADROOM * seconds:
            raise BusyError(f"model {self.name!r}: expected to score within {seconds:g} s, got"
                            f" {pace.images} images before those of this request",
                            pace.seconds(0))

    async def _score(self, batch: NDArray[Any], maps: bool) -> Result:
        """The result of images of one size."""
        def submit() -> Pending:
            return self.engine.submit(batch, maps=maps, most_waiting=self.terms.most_waiting,
                                      gather_for=self.terms.gather_for)

        if batch.nbytes <= _INLINE_BYTES:
            return await self._waiter.wait(submit())
        submitted = self._submitters.submit(submit)
        try:
            pending = await asyncio.wrap_future(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(_drop)
            raise
        return await self._waiter.wait(pending)

    async def _score_images(self, tensor: Tensor, maps: bool) -> Result:
        values = tensor.values
        is_batch = not isinstance(values, list) and tensor.datatype in _PIXELS and (
            values.ndim == 3 or (values.ndim == 4 and values.shape[3] == 3))
        expect(is_batch, IMAGES, f"{', '.join(_PIXELS)} of shape [N, H, W] or [N, H, W, 3]",
               f"{tensor.datatype} {list(tensor.shape)}")
        assert not isinstance(values, list)
        try:
            return await self._score(values, maps)
        except InputError as error:
            raise _renamed(error) from error

    async def _score_files(self, tensor: Tensor, maps: bool) -> Result:
        files = tensor.values
        expect(isinstance(files, list) and len(tensor.shape) == 1, FILES,
               "BYTES of shape [N], each an encoded image", f"{tensor.datatype}"
               f" {list(tensor.shape)}")
        tasks = [asyncio.ensure_future(self._score_file(bytes(file), maps)) for file in files]
        try:
            return self._join(await asyncio.gather(*tasks), maps)
        finally:
            for task in tasks:  # where one failed, nobody waits for the others
                task.cancel()

    async def _score_file(self, content: bytes, maps: bool) -> Result | str:
        """The result of a file's image, or why there is none."""
        await self._decoded.acquire()
        decoding = self._decoders.submit(read_image, content, self.engine.spec.decoding)
        try:
            image = await asyncio.wrap_future(decoding)
            if isinstance(image, str):
                return image
            try:
                return await self._score(image[None], maps)
            except InputError as error:
                return str(_renamed(error))
        finally:
            if decoding.done():
                self._decoded.release()
            else:  # its thread goes on, and fills memory, though nobody waits
                loop = asyncio.get_running_loop()
                decoding.add_done_callback(
                    lambda _: loop.call_soon_threadsafe(self._decoded.release))

    def _join(self, found: Sequence[Result | str], maps: bool) -> Result:
        """The results of single images as one; of those without one NaN, and the reason."""
        side, known = self.engine.spec.input_size, self.engine.decisions is not None

        def join(name: str, shape: tuple[int, ...], missing: Any, dtype: Any = np.float32,
                 ) -> NDArray[Any]:
            whole = np.full((len(found), *shape), missing, dtype)
            for place, each in enumerate(found):
                if isinstance(each, Result):
                    whole[place] = getattr(each, name)[0]
            return whole

        return Result(
            join("scores", (), np.nan), join("maps", (side, side), np.nan) if maps else None,
            join("scale_weights", (3,), np.nan),
            join("p_values", (), np.nan) if known else None,
            join("anomalous", (), False, np.bool_) if known else None,
            {place: each for place, each in enumerate(found) if isinstance(each, str)})

    def _tensors(self, result: Result, count: int) -> dict[str, Tensor]:
        errors = [result.errors.get(place, "").encode() for place in range(count)]
        values: dict[str, Any] = {
            "score": result.scores, "scale_weights": result.scale_weights, MAP: result.maps,
            "p_value": result.p_values, "anomalous": result.anomalous, "error": errors}
        return {
            output.name: Tensor(output.name, output.datatype, (count, *output.shape[1:]),
                                values[output.name])
            for output in self.outputs if values[output.name] is not None}


def _drop(submitted: Future[Pending]) -> None:
    """Let go of a batch that was submitted after its client had gone."""
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


def _only_input(request: InferRequest) -> Tensor:
    expect(len(request.inputs) == 1, "inputs", f"one, {IMAGES} or {FILES}", len(request.inputs))
    (tensor,) = request.inputs
    expect(tensor.name in (IMAGES, FILES), "inputs", f"{IMAGES} or {FILES}",
           repr(tensor.name)[:60])
    return tensor


def _renamed(error: InputError) -> InputError:
    """The engine's error as who sent `images` knows them."""
    return type(error)(str(error).replace("batch", IMAGES, 1))
