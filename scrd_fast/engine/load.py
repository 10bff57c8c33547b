"""load_engine, verify_engine: from an engine file to an engine."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from scrd_fast.backends.backend import CompileRequest, build_again
from scrd_fast.backends.registry import BACKENDS, backend_of, choose_backend, gpu_of, make_runner
from scrd_fast.backends.runner import Runner
from scrd_fast.backends.source import Source
from scrd_fast.engine import current as _current
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.engine_file import GOLDEN, NETWORK, EngineFile, manifest_digest
from scrd_fast.engine.golden import replay
from scrd_fast.engine.manifest import Manifest, are_buckets
from scrd_fast.errors import (
    BackendUnavailable,
    EngineFileError,
    OutputError,
    ScrdError,
    expect,
    explain_missing,
)
from scrd_fast.files import Contents, as_path
from scrd_fast.graph.stored import QUANTISATION
from scrd_fast.machine import this_machine
from scrd_fast.precisions import PRECISIONS
from scrd_fast.progress import Progress, silent
from scrd_fast.user_records import JUDGED_ENGINES, is_recorded, record_line

if TYPE_CHECKING:
    import torch


def load_engine(
    path: str | os.PathLike[str], *, verify: bool = False, mode: str = "latency",
    device: str | None = None, trust: bool = False,
) -> Engine:
    """Load an engine file; it becomes the engine of `scrd_fast.score`.

    mode: "latency" (one stream, all cores: the shortest time per batch) or "throughput" (several
    streams that share out the cores: the most images per second of many batches; CPUs only).
    device: "cuda:<index>" for an engine that runs on a GPU, by default the current one. verify:
    replay the golden images first and raise FidelityError where this machine does not keep the
    limits, as an engine that was built without a GPU does by itself the first time that it is
    loaded on one. trust: also run a TensorRT plan that this user did not build; a plan is code.
    Raises EngineFileError, BackendUnavailable, DeviceMemoryError.
    """
    engine, golden = open_engine(path, mode, device, trust)
    if verify:
        _replay_first(engine, golden, device)
    return _current.use(engine)


def _replay_first(engine: Engine, golden: Contents, device: str | None) -> None:
    """Close an engine that does not reproduce its golden images, and raise FidelityError."""
    try:
        replay(engine, golden, alike=_alike(engine, device), whole=False)
    except BaseException:
        engine.close()
        raise


def open_engine(
    path: str | os.PathLike[str], mode: str = "latency", device: str | None = None,
    trust: bool = False,
) -> tuple[Engine, Contents]:
    """The compiled engine of a file, and its golden images.

    What was built without a GPU has to reproduce those first, once for each kind of GPU.
    """
    path = as_path(path, "path")
    file = read_runnable(path)
    manifest, members = file.manifest, file.members
    targets = manifest.plan.targets if manifest.plan else ()
    try:
        backend = backend_of(choose_backend(manifest.backend, device))
    except BackendUnavailable as error:
        if not targets:
            raise
        raise BackendUnavailable(f"{path}: it runs on GPUs of {', '.join(targets)}, and here none"
                                 f" can be used: {error}") from error
    place = gpu_of(manifest.backend, device)
    backend.check_compiled(path, manifest.machine, manifest.plan, manifest.members, place,
                           trust=trust)
    if backend.on_gpu:  # what is compiled for one is code: it must be what was trusted
        file.check()
    with nullcontext() if backend.on_gpu else file.checking():
        runner = compile_file(path, manifest, members, mode=mode, device=place, compiled={
            name: members[name] for name in backend.members if name in members})
    engine = Engine(manifest, runner, path, mode=mode, device=device,
                    mapped=None if backend.on_gpu else file)
    golden = members[GOLDEN]
    if manifest.fidelity.emulated:
        _judge_once(engine, golden, device)
    return engine, golden


def _judge_once(engine: Engine, golden: Contents, device: str | None) -> None:
    """Replay the golden images of an engine that was built without a GPU, unless this user has seen
    it reproduce them on such a one."""
    gpu = this_machine(gpu_of(engine.manifest.backend, device)).gpu
    line = sha256(f"{manifest_digest(engine.manifest)} {gpu}".encode()).hexdigest()
    if is_recorded(JUDGED_ENGINES, line):
        return
    _replay_first(engine, golden, device)
    try:
        record_line(JUDGED_ENGINES, line)
    except OutputError as error:
        warnings.warn(f"{engine.path}: will be judged again the next time it is loaded: {error}",
                      stacklevel=4)


def reopen_engine(path: str, digest: str, mode: str, device: str | None) -> Engine:
    """The engine that was pickled; it does not become the engine of `scrd_fast.score`.

    digest: of its manifest then. A plan must be this user's: trust does not travel.
    """
    engine, _ = open_engine(path, mode, device)
    if manifest_digest(engine.manifest) != digest:
        engine.close()
        raise EngineFileError(f"{path}: expected the engine that was pickled, got one that was"
                              " written since; load and pickle it again")
    return engine


def read_runnable(path: str | os.PathLike[str]) -> EngineFile:
    """An engine file that this package can make a runner of; its members are yet to be checked."""
    file = EngineFile(path)
    manifest = file.manifest
    for name in (NETWORK, GOLDEN):
        if name not in file.members:
            raise EngineFileError(f"{path}: expected a member {name}, got none")
    if manifest.backend not in BACKENDS or manifest.precision not in PRECISIONS:
        raise EngineFileError(f"{path}: expected a backend of {BACKENDS} and a precision of"
                              f" {PRECISIONS}, got {manifest.backend!r} and {manifest.precision!r}")
    if not are_buckets(manifest.buckets):
        raise EngineFileError(f"{path}: expected buckets of integers that rise from 1, got"
                              f" {manifest.buckets}")
    return file


def compile_file(
    path: Path, manifest: Manifest, members: Mapping[str, Contents], *, mode: str = "latency",
    device: "torch.device | None" = None, compiled: Mapping[str, Contents] | None = None,
    progress: Progress = silent,
) -> Runner:
    """The network of an engine file, compiled; mode, device, compiled, progress: as in
    CompileRequest. Raises EngineFileError and what the backend raises."""
    backend = backend_of(manifest.backend)
    request = CompileRequest(
        Source(members[NETWORK], members.get(QUANTISATION)), manifest.spec, manifest.precision,
        manifest.buckets, mode, device, None if manifest.plan is None else manifest.plan.options,
        compiled, progress)
    try:
        # Files of format 1 hold nothing that OpenVINO could compile as it is.
        with explain_missing(f"{path}: to compile its portable graph"):
            return make_runner(manifest.backend, request)
    except EngineFileError as error:
        told = str(error)
        again = build_again(path) if any(name in told for name in backend.members) else ""
        raise EngineFileError(f"{path}: {told.removeprefix(f'{path}: ')}{again}") from error
    except ScrdError:
        raise
    # RuntimeError is what OpenVINO throws, the others what reading somebody's graph meets.
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise EngineFileError(f"{path}: its network cannot be compiled:"
                              f" {reason[-1] if reason else type(error).__name__}") from error


def verify_engine(
    path: str | os.PathLike[str], *, trust: bool = False, progress: Progress = silent
) -> dict[str, float]:
    """Replay the golden images of an engine file on this machine; returns the figures.

    trust: as in `load_engine`. Raises FidelityError where the engine does not give here what it
    gave where it was built: the same, on a machine like that one, else the same within the limits
    of its precision, in ranks and decisions, too.
    """
    engine, golden = open_engine(path, trust=trust)
    with engine:
        return replay(engine, golden, alike=_alike(engine), whole=True, progress=progress)


def _alike(engine: Engine, device: str | None = None) -> bool:
    """Whether this machine is like the one that built the engine."""
    manifest = engine.manifest
    return (engine.version == manifest.versions.get(manifest.backend)
            # A file of format 1 is compiled from another graph today.
            and set(backend_of(manifest.backend).members) <= set(manifest.members)
            and manifest.machine == this_machine(gpu_of(manifest.backend, device)))


@contextmanager
def borrow_engine(
    engine: Engine | str | os.PathLike[str], device: str | None = None, trust: bool = False
) -> Iterator[Engine]:
    """A loaded engine as it is; that of a file for as long as it is needed."""
    if isinstance(engine, Engine):
        expect(device is None and not trust, "device, trust", "none with a loaded engine",
               (device, trust))
        yield engine
        return
    opened, _ = open_engine(as_path(engine, "engine"), device=device, trust=trust)
    with opened:
        yield opened
