"""Networks on NVIDIA GPUs: static buffers, one CUDA graph per batch size, and their scorer.

Shared by the GPU backends. A backend gives a function that enqueues its network and tail; here it
is captured once per batch size ("bucket"), from normalised pixels in a static buffer to static
results:

    images -> staging -> preprocess_into(pixels) -> [graph: network, distances, map] -> results

The stream is the queue: everything of a batch is enqueued in order and the host waits for an event
behind its last copy, never for the device.
"""

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from scrd_fast.backends.runner import Runner, Scores
from scrd_fast.errors import (
    ClosedError,
    DeviceFaultError,
    DeviceMemoryError,
    NotFiniteError,
    OverloadedError,
    expect,
)
from scrd_fast.kernels.anomaly_map import combine_distances, cosine_distances, tail
from scrd_fast.kernels.preprocess import preprocess_into
from scrd_fast.kernels.prior import apply_prior, device_prior, thumbnails
from scrd_fast.ops.implementations import check_device
from scrd_fast.ops.preprocess import check_images
from scrd_fast.reference.preprocess import FULL_SCALE
from scrd_fast.spec import STRIDES, ScoringSpec
from scrd_fast.torch_state import exact_convolutions

# Enqueues the network and its tail on the current stream: normalised pixels (n, 3, S, S) -> float32
# scores (n,), NaN where something is not finite, maps (n, S, S) and scale weights (n, 3).
Scoring = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
WARM_UP = 3  # runs before a capture: libraries choose algorithms, kernels are compiled and tuned
_POLL_SECONDS = 2e-4


def no_room(device: torch.device) -> DeviceMemoryError:
    """The error for a GPU on which not even a single image can be scored."""
    return DeviceMemoryError(f"device {str(device)!r}: expected free memory for the network and"
                             " one image, got less; end other programs on it or use another GPU")


@contextmanager
def explain_faults() -> Iterator[None]:
    """Raise DeviceFaultError for what CUDA reports of work that went wrong, at whatever call."""
    try:
        yield
    except torch.AcceleratorError as error:
        reason = str(error).strip().splitlines()[0]
        raise DeviceFaultError(
            f"the GPU stopped ({reason}), and with it all that this process had loaded on it; load"
            " the engine again in a new process") from error


@dataclass(frozen=True)
class _Bucket:
    """A captured graph with the buffers that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    pixels: Tensor  # (n, 3, S, S)
    numbers: Tensor  # (n, 4): score and scale weights, side by side to be copied at once
    maps: Tensor  # (n, S, S)


class CapturedNetwork:
    """A network from normalised pixels to scores and maps, captured for each of its buckets."""

    def __init__(self, scoring: Scoring, spec: ScoringSpec, buckets: Sequence[int],
                 device: torch.device, dtype: torch.dtype, *, channels_last: bool) -> None:
        """dtype, channels_last: of the pixels that `scoring` takes. A bucket that does not fit
        into the GPU's memory is left out with a warning; raises DeviceMemoryError where not even
        a single image fits."""
        self.spec, self.device = spec, device
        self.stream = torch.cuda.Stream(device)
        # The weights may still be on their way there, on the stream of whoever made them.
        self.stream.wait_stream(torch.cuda.current_stream(device))
        self.buckets: dict[int, _Bucket] = {}
        self._scoring, self._dtype, self._channels_last = scoring, dtype, channels_last
        # One pool: graphs of one stream never run at a time, and their results stay allocated.
        self._pool = torch.cuda.graph_pool_handle()
        for n in sorted(buckets, reverse=True):  # smaller graphs find room in the larger ones'
            bucket = self._captured(n)
            if bucket is None and self.buckets:  # the larger ones hold what it needs
                larger, self.buckets = list(self.buckets), {}
                self._leave_out(larger)
                bucket = self._captured(n)
            if bucket is None:
                self._leave_out([n])
            else:
                self.buckets = {n: bucket, **self.buckets}
        if not self.buckets:
            raise no_room(device)

    def _leave_out(self, buckets: Sequence[int]) -> None:
        torch.cuda.empty_cache()
        for n in buckets:
            warnings.warn(f"a batch of {n} does not fit into the memory of {self.device}; larger"
                          " batches are split", stacklevel=3)

    def _captured(self, n: int) -> _Bucket | None:
        """The graph for a batch of n; None where the memory is too small."""
        side = self.spec.input_size
        try:
            with torch.no_grad(), torch.cuda.device(self.device), exact_convolutions:
                with torch.cuda.stream(self.stream):
                    pixels = torch.zeros((n, 3, side, side), dtype=self._dtype,
                                         device=self.device)
                    if self._channels_last:
                        pixels = pixels.contiguous(memory_format=torch.channels_last)
                    for _ in range(WARM_UP):
                        self._scoring(pixels)
                self.stream.synchronize()
                torch.cuda.empty_cache()  # the graph allocates from a pool of its own
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool, stream=self.stream,
                                      capture_error_mode="thread_local"):
                    scores, maps, weights = self._scoring(pixels)
                    numbers = torch.cat([scores[:, None], weights], dim=1)
        except torch.cuda.OutOfMemoryError:
            return None
        except RuntimeError as error:
            # What cuDNN says where no algorithm's workspace fits.
            if "unable to find an engine" not in str(error):
                raise
            return None
        return _Bucket(graph, pixels, numbers, maps)


def with_tail(
    network: Callable[[Tensor], Sequence[Tensor]], spec: ScoringSpec, device: torch.device
) -> Scoring:
    """A network that gives three teacher maps, three student maps and float32 scale weights, with
    the kernels for distances and map behind it."""
    side = spec.input_size
    prior = None if spec.prior is None else device_prior(spec, device)
    of_map = tail(spec, (side // STRIDES[0], side // STRIDES[1], side // STRIDES[2]), device)

    def run(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        *features, weights = network(pixels)
        distances = cosine_distances(features[:3], features[3:])
        if prior is not None:
            distances = apply_prior(distances, thumbnails(pixels), prior)
        maps, mean, largest = combine_distances(distances, weights, of_map)
        assert maps is not None
        assert largest is not None
        if spec.reduction == "mean":
            return mean, maps, weights
        # A maximum passes over what is not a number, a mean does not.
        return torch.where(mean.isfinite(), largest, mean), maps, weights

    return run


def pieces(count: int, buckets: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """How `count` images are scored: (first, how many, bucket), each bucket at least as large.

    As many of the largest bucket as there are, and the rest in the smallest that holds it.
    """
    for first in range(0, count, max(buckets)):
        size = min(max(buckets), count - first)
        yield first, size, min(b for b in buckets if b >= size)


class PendingCuda:
    """Scores on their way from the GPU into page-locked memory."""

    def __init__(self, numbers: Tensor, maps: Tensor | None, finished: torch.cuda.Event) -> None:
        """numbers: as of a bucket."""
        self._results, self.finished = (numbers, maps), finished
        self._process = os.getpid()

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise ClosedError("result: expected the process that submitted the batch, got a fork"
                              " of it")

    def done(self) -> bool:
        """Whether `get` would not wait."""
        self._check_process()
        with explain_faults():
            return self.finished.query()

    def cancel(self) -> None:
        """Nothing: the stream is the queue, and nothing is taken from it again."""

    def wait(self, seconds: float) -> bool:
        """Wait this long at most; whether it is done."""
        end = time.monotonic() + seconds
        while not self.done():
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, _POLL_SECONDS))
        return True

    def get(self) -> Scores:
        """(scores (N,), maps (N, S, S) or None, scale weights (N, 3), None); waits for them.

        Raises NotFiniteError naming the first image on which the network overflows, and
        DeviceFaultError.
        """
        self._check_process()
        with explain_faults():
            self.finished.synchronize()
        numbers, maps = self._results
        scores, weights = numbers[:, 0].contiguous(), numbers[:, 1:].contiguous()
        bad = (~scores.isfinite()).nonzero()
        if len(bad):
            raise NotFiniteError(f"batch: the network's output for image {int(bad[0])} is not"
                                 " finite; it overflows on this image")
        return scores.numpy(), None if maps is None else maps.numpy(), weights.numpy(), None


class CudaScorer:
    """Images in, scores and maps out, through a captured network. Any thread may submit."""

    def __init__(self, network: CapturedNetwork) -> None:
        self._network: CapturedNetwork | None = network
        self._lock = Lock()
        self._process = os.getpid()
        self._submitted: deque[tuple[torch.cuda.Event, int]] = deque()  # ends, and images
        self._executions = 0

    def close(self) -> None:
        """Finish what was submitted, then let go of the network."""
        if self._process != os.getpid():
            return  # a fork has no use of its parent's GPU memory, and none to give back
        with self._lock:
            if self._network is not None:
                self._network.stream.synchronize()
            self._network = None

    def waiting(self) -> int:
        """Images whose scores are not there."""
        with self._lock:
            return self._count_waiting()

    def _count_waiting(self) -> int:
        with explain_faults():
            while self._submitted and self._submitted[0][0].query():
                self._submitted.popleft()
        return sum(count for _, count in self._submitted)

    def executions(self) -> int:
        """Graphs that were replayed so far."""
        return self._executions

    def submit(self, batch: Any, maps: bool, distances: bool = False,
               most_waiting: int | None = None, gather_for: float | None = None) -> PendingCuda:
        """Enqueue a batch and return: a tensor (N, H, W[, 3]) on the CPU or this GPU, an array,
        or a list of images of different sizes. Images on the CPU are copied before it returns.
        Distances stay in the captured graph: they are not given. Each batch goes alone, whatever
        gather_for says.

        Raises InputError, ClosedError, OverloadedError, DeviceFaultError, and DeviceMemoryError,
        after which it can still be used.
        """
        if self._process != os.getpid():
            raise ClosedError("scorer: expected the process that made it, got a fork of it; load"
                              " the engine in the process that uses it")
        # Looking for NaN in images on the GPU would wait for it; the scores tell later.
        images = check_images(batch, "batch", wait=False)
        with self._lock:
            network = self._network
            if network is None:
                raise ClosedError("scorer: expected an open one, got one after close()")
            _check_devices(images, network.device)
            others = self._count_waiting()
            if most_waiting is not None and others + len(images) > most_waiting:
                raise OverloadedError(f"batch: expected at most {most_waiting} images waiting with"
                                      f" it, got {others} others and {len(images)} of it")
            try:
                with explain_faults():
                    pending = _enqueue(network, images, maps)
                self._submitted.append((pending.finished, len(images)))
                self._executions += sum(1 for _ in pieces(len(images), list(network.buckets)))
                return pending
            except torch.cuda.OutOfMemoryError as error:
                raise DeviceMemoryError(
                    f"batch: expected images that fit into the free memory of {network.device},"
                    f" got {_megabytes(images):.0f} MB; score fewer or smaller ones at a time"
                ) from error


def cuda_runner(name: str, version: str, network: CapturedNetwork,
                precision_used: Callable[[], dict[str, Any]]) -> Runner:
    """The runner of a captured network, whose scorer takes images as they come."""
    return Runner(name, version, tuple(network.buckets), lambda: CudaScorer(network),
                  lambda batch, argument: batch, precision_used)


def _check_devices(images: Tensor | list[Tensor], device: torch.device) -> None:
    """Raise InputError unless all images are on one device, the CPU or `device`."""
    tensors, names = ([images], ["batch"]) if isinstance(images, Tensor) else (
        images, [f"batch[{i}]" for i in range(len(images))])
    for name, tensor in zip(names, tensors, strict=True):
        check_device(name, tensor, names[0], tensors[0].device)
    first = tensors[0].device
    expect(first.type == "cpu" or first == device, names[0], f"a tensor on {device} or the CPU",
           f"one on {first}")


def _megabytes(images: Tensor | list[Tensor]) -> float:
    tensors = [images] if isinstance(images, Tensor) else images
    return sum(t.nbytes for t in tensors) / 2**20


def _enqueue(network: CapturedNetwork, images: Tensor | list[Tensor], maps: bool) -> PendingCuda:
    n, side = len(images), network.spec.input_size
    with torch.no_grad(), torch.cuda.device(network.device):
        caller = torch.cuda.current_stream()
        if (images if isinstance(images, Tensor) else images[0]).is_cuda:
            network.stream.wait_stream(caller)  # what makes the images may still be under way
        with torch.cuda.stream(network.stream):
            numbers = _page_locked(n, 4)
            all_maps = _page_locked(n, side, side) if maps else None
            for first, size, chosen in pieces(n, list(network.buckets)):
                bucket, part = network.buckets[chosen], slice(first, first + size)
                # What lies behind `size` is left from another batch, and never read.
                _load(network, images[part], bucket.pixels[:size])
                bucket.graph.replay()
                numbers[part].copy_(bucket.numbers[:size], non_blocking=True)
                if all_maps is not None:
                    all_maps[part].copy_(bucket.maps[:size], non_blocking=True)
            finished = torch.cuda.Event()
            finished.record()
    return PendingCuda(numbers, all_maps, finished)


def _page_locked(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Host memory that the GPU copies to and from by itself; PyTorch keeps it for reuse."""
    return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)


def _load(network: CapturedNetwork, images: Tensor | list[Tensor], pixels: Tensor) -> None:
    """Images of one size, or a list, -> their rows of the static buffer (n, 3, S, S)."""
    batches = [(images, pixels)] if isinstance(images, Tensor) else [
        (image[None], pixels[i : i + 1]) for i, image in enumerate(images)]
    for batch, rows in batches:
        if batch.is_cuda:
            batch.record_stream(network.stream)
        else:
            staged = _page_locked(*batch.shape, dtype=batch.dtype).copy_(batch)
            batch = staged.to(network.device, non_blocking=True)
        spec = network.spec
        preprocess_into(batch, rows, spec.mean, spec.std, FULL_SCALE[batch.dtype],
                        traceable=False)
