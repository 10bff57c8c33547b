"""build_engine, export_onnx: from a checkpoint to an engine file, judged before it is written."""

import hashlib
import os
import platform
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors

from scrd_fast import _current
from scrd_fast.data.images import is_paths, read_images
from scrd_fast.engine import fidelity
from scrd_fast.engine.backends.choice import (
    GPU_BACKENDS,
    check_precision,
    choose_backend,
    make_runner,
    native_precisions,
)
from scrd_fast.engine.backends.plan import (
    PLAN,
    TensorRtOptions,
    plan_fingerprint,
    remember_plan,
)
from scrd_fast.engine.backends.runner import Runner, Scorer
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.file import (
    GOLDEN,
    NETWORK,
    Manifest,
    write_engine_file,
)
from scrd_fast.engine.golden import golden_images
from scrd_fast.engine.graph import build_graph
from scrd_fast.engine.progress import Progress, silent
from scrd_fast.engine.quantize import BASE, KINDS, calibrate, calibration_pixels
from scrd_fast.errors import FidelityError, InputError, NotFiniteError, expect
from scrd_fast.files import atomic_write
from scrd_fast.model.checkpoint import Checkpoint, load_checkpoint
from scrd_fast.model.reference import score_images, score_pixels
from scrd_fast.spec import ScoringSpec

GOLDEN_COUNT = 8
BATCH = 8
LARGEST_BATCH = 1024
MOST_BUCKETS = 16  # each is compiled on its own
FEW_IMAGES = 24  # of the probe set, where no ranks are judged: they show the largest error
GPU_BUCKETS = (1, 8, 32)


def fingerprint(device: torch.device | None = None) -> dict[str, Any]:
    """The machine: what decides which compiled code runs; device: the GPU, where one is used."""
    machine: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
    }
    if device is not None:
        machine |= {
            "gpu": torch.cuda.get_device_name(device),
            "compute_capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return machine


def are_buckets(value: Any) -> bool:
    """Whether these are batch sizes rising from 1, few enough."""
    return (isinstance(value, tuple | list) and all(type(b) is int for b in value)
            and list(value[:1]) == [1] and list(value) == sorted(set(value))
            and value[-1] <= LARGEST_BATCH and len(value) <= MOST_BUCKETS)


def _faster_in_batches(runner: Runner, spec: ScoringSpec) -> bool:
    """Whether a batch of BATCH costs less than its images one by one, by at least 5 %."""
    side = spec.input_size
    images = np.random.default_rng(0).integers(0, 255, (BATCH, side, side, 3), dtype=np.uint8)

    def seconds(scorer: Scorer, batches: list[NDArray[np.uint8]]) -> float:
        start = time.perf_counter()
        for pending in [scorer.submit(batch, maps=False) for batch in batches]:
            pending.get()
        return time.perf_counter() - start

    one_by_one = [images[i : i + 1] for i in range(BATCH)]
    with closing(runner.scorer()) as scorer:
        times = [(seconds(scorer, [images]), seconds(scorer, one_by_one)) for _ in range(4)][1:]
    together, apart = np.median(times, axis=0)
    return bool(together < 0.95 * apart)


@dataclass(frozen=True)
class _Builder:
    """Makes and judges the runners of one checkpoint."""

    checkpoint: Checkpoint
    proto: onnx.ModelProto
    backend: str
    device: str | None
    buckets: tuple[int, ...] | None
    images: Any
    limits: fidelity.Limits | None
    options: TensorRtOptions
    progress: Progress

    def judged(self, precision: str) -> tuple[Runner, fidelity.Report]:
        """A runner that keeps the limits; raises FidelityError where there is none."""
        self.progress(0, 1, f"compiling {self.backend} {precision}")
        runner = self._compiled(precision)
        report = self._measure(runner, precision)
        if broken := fidelity.broken_limits(report, self.allowed(precision)):
            raise FidelityError(f"{precision}: " + "; ".join(broken))
        return runner, report

    def allowed(self, precision: str) -> fidelity.Limits:
        return self.limits or fidelity.LIMITS[precision]

    def _compiled(self, precision: str) -> Runner:
        spec, of_tensorrt = self.checkpoint.spec, dict[str, Any]()
        if self.backend == "tensorrt":
            of_tensorrt = {"options": self.options, "progress": self.progress}
            if precision in KINDS:
                pixels = calibration_pixels(spec, self.images)
                of_tensorrt["ranges"] = calibrate(self.proto, spec, pixels, progress=self.progress)
        on_gpu = self.backend in GPU_BACKENDS
        make = partial(make_runner, self.backend, self.proto, spec, precision, device=self.device,
                       **of_tensorrt)
        runner = make(buckets=self.buckets or (GPU_BUCKETS if on_gpu else (1, BATCH)))
        if self.buckets is None and not on_gpu and not _faster_in_batches(runner, spec):
            runner = make(buckets=(1,))
        return runner

    def _measure(self, runner: Runner, precision: str) -> fidelity.Report:
        """The fidelity report of one runner; raises FidelityError on values that are not finite."""
        from scrd_fast.engine.backends.torch_network import first_nonfinite

        model, spec = self.checkpoint.model, self.checkpoint.spec
        probe = fidelity.make_probe(spec, self.images, fidelity.JUDGED_FROM if self.allowed(
            precision).need_ranks() else FEW_IMAGES)
        n, done = len(probe.pixels), 0

        def step(count: int) -> None:
            nonlocal done
            done += count
            self.progress(done, 2 * n, f"checking {precision} against the reference")

        ours: list[tuple[NDArray[np.float32], ...]] = []
        theirs = []
        with closing(runner.scorer()) as scorer:
            for pixels in probe.pixels.split(8):
                try:
                    result, _ = score_pixels(model, spec, pixels)
                    theirs.append(result)
                    step(len(pixels))
                    batch = pixels.permute(0, 2, 3, 1).numpy()
                    scores, maps, _ = scorer.submit(batch, maps=True).get()
                    assert maps is not None
                    ours.append((scores, maps))
                    step(len(pixels))
                except NotFiniteError as error:
                    base = BASE if precision in KINDS else precision
                    layer = first_nonfinite(self.proto, spec, pixels, base)
                    where = f", first in layer {layer!r}" if layer else ""
                    raise FidelityError(
                        f"{precision}: values that are not finite{where}") from error
        our_scores, our_maps = (torch.from_numpy(np.concatenate(part))
                                for part in zip(*ours, strict=True))
        return fidelity.compare(probe, our_scores, our_maps,
                                torch.cat([r.score(spec) for r in theirs]),
                                torch.cat([r.map for r in theirs if r.map is not None]))


def build_engine(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    backend: str = "auto",
    precision: str = "auto",
    device: str | None = None,
    images: Any = None,
    buckets: tuple[int, ...] | None = None,
    limits: fidelity.Limits | None = None,
    tensorrt: TensorRtOptions | None = None,
    progress: Progress = silent,
) -> Engine:
    """Compile a checkpoint into one engine file for this machine, and load it.

    checkpoint: a .safetensors file of this package. out: the engine file, `<checkpoint>.scrd`
    beside it by default. backend: "auto", "openvino", "torch_eager", "tensorrt" or "torch_cuda".
    precision: "fp32", "bf16", "fp16" (on a GPU), "int8" or "fp8" (TensorRT; they need `images` to
    calibrate on), or "auto": the fastest that the machine computes in natively and that keeps the
    fidelity limits, without quantisation. device: "cpu", "cuda" or "cuda:<index>"; by
    default a GPU where one can be used. images: normal images (array, folder or paths) to judge
    fidelity on; their pictures are not kept. buckets: batch sizes rising from 1, each compiled on
    its own; by default 1, 8 and 32 on a GPU, else single images, and batches of 8 where those are
    measured to be faster. On a GPU a batch between two buckets is padded, and a bucket that does
    not fit into its memory is left out with a warning. limits: fidelity limits instead of the
    table's (engine.fidelity). tensorrt: how a plan is built. progress: called with (done, total,
    what).

    Raises CheckpointError, BackendUnavailable, DeviceMemoryError, EngineBuildError, FidelityError
    (with the figures), OutputError.
    """
    expect(buckets is None or are_buckets(buckets), "buckets",
           f"at most {MOST_BUCKETS} integers that rise from 1 to {LARGEST_BATCH} at most", buckets)
    name = choose_backend(backend, device)
    check_precision(name, precision, device)
    path = Path(checkpoint)
    target = Path(out) if out is not None else path.with_suffix(".scrd")
    loaded = load_checkpoint(path)
    probe_images = read_images(images) if is_paths(images) else images
    proto = build_graph(loaded.model, loaded.spec)

    candidates = [precision] if precision != "auto" else [
        p for p in native_precisions(name, device) if p not in KINDS]
    expect(probe_images is not None or not set(candidates) & set(KINDS), "images",
           f"normal images to calibrate {precision} on", "none")
    options = tensorrt or TensorRtOptions()
    builder = _Builder(loaded, proto, name, device, buckets, probe_images, limits, options,
                       progress)
    misses: list[str] = []
    for candidate in candidates:
        try:
            runner, report = builder.judged(candidate)
            break
        except FidelityError as error:
            misses.append(str(error))
    else:
        raise FidelityError(f"{path}: no precision keeps the fidelity limits: {' | '.join(misses)}")

    on_gpu = name in GPU_BACKENDS
    golden = golden_images(GOLDEN_COUNT, loaded.spec.input_size)
    result, _ = score_images(loaded.model, loaded.spec, golden)
    assert result.map is not None
    tensors = {f"image{i}": torch.from_numpy(image) for i, image in enumerate(golden)}
    tensors |= {"scores": result.score(loaded.spec), "maps": result.map}
    manifest = Manifest(
        spec=loaded.spec.to_dict(),
        model={"backbone": loaded.config.backbone, "teacher": loaded.config.teacher},
        backend=name,
        precision=candidate,
        precision_used=runner.precision_used(),
        buckets=runner.buckets,
        fingerprint=fingerprint_of(runner, torch.device(device or "cuda") if on_gpu else None,
                                   options),
        versions={"torch": str(torch.__version__), "onnx": onnx.__version__,
                  name: runner.version},
        fidelity={"precision": candidate, "probe": "images" if images is not None else "golden",
                  "limits": asdict(builder.allowed(candidate)),
                  "rejected": misses, **report.to_dict()},
    )
    members = {NETWORK: proto.SerializeToString(), GOLDEN: save_tensors(tensors)}
    write_built(target, manifest, members, runner)
    return _current.use(Engine(manifest, runner, target))


def fingerprint_of(
    runner: Runner, device: torch.device | None, options: TensorRtOptions
) -> dict[str, Any]:
    """The machine, and what a plan of the runner is tied to."""
    machine = fingerprint(device)
    if PLAN in runner.compiled:
        machine["plan"] = plan_fingerprint(runner.version, options)
    return machine


def write_built(
    path: Path, manifest: Manifest, members: Mapping[str, bytes], runner: Runner
) -> None:
    """Write an engine file with what its runner compiled, which is then known as this user's.
    Raises OutputError."""
    everything = {**members, **runner.compiled}
    if PLAN in everything:  # before: without its record the file could not be loaded
        remember_plan(hashlib.sha256(everything[PLAN]).hexdigest())
    write_engine_file(path, manifest, everything)


def export_onnx(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the portable ONNX graph of a checkpoint (see engine.graph.build_graph)."""
    loaded = load_checkpoint(checkpoint)
    if Path(out).suffix != ".onnx":
        raise InputError(f"out: expected a file name ending in .onnx, got {str(out)!r}")
    data = build_graph(loaded.model, loaded.spec).SerializeToString()
    with atomic_write(out) as temporary:
        temporary.write_bytes(data)
    return Path(out)

