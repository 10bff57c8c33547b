"""load_engine, verify_engine: from an engine file to an engine."""

import os
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError

from scrd_fast.backends.backend import CompileRequest, build_again
from scrd_fast.backends.registry import (
    BACKENDS,
    PRECISIONS,
    backend_of,
    choose_backend,
    gpu_of,
    make_runner,
)
from scrd_fast.backends.runner import Runner
from scrd_fast.engine import current as _current
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.engine_file import (
    GOLDEN,
    NETWORK,
    Manifest,
    are_buckets,
    manifest_digest,
    read_engine_file,
)
from scrd_fast.engine.golden import replay
from scrd_fast.errors import EngineFileError, InputError, ScrdError
from scrd_fast.files import as_path
from scrd_fast.graph.quantize import KINDS, QUANTISATION, Quantisation, check_shifts
from scrd_fast.machine import fingerprint
from scrd_fast.metrics.decisions import Decisions
from scrd_fast.progress import Progress, silent
from scrd_fast.torch_state import own_state


def load_engine(
    path: str | os.PathLike[str], *, verify: bool = False, mode: str = "latency",
    device: str | None = None, trust: bool = False,
) -> Engine:
    """Load an engine file; it becomes the engine of `scrd_fast.score`.

    mode: "latency" (one stream, all cores: the shortest time per batch) or "throughput" (several
    streams that share out the cores: the most images per second of many batches; CPUs only).
    device: "cuda:<index>" for an engine that runs on a GPU, by default the current one. verify:
    replay the golden images first and raise FidelityError where this machine does not keep the
    limits. trust: also run a TensorRT plan that this user did not build; a plan is code.
    Raises EngineFileError, BackendUnavailable, DeviceMemoryError.
    """
    engine, golden = open_engine(path, mode, device, trust)
    if verify:
        try:
            replay(engine, golden, alike=_alike(engine, device), whole=False)
        except BaseException:
            engine.close()
            raise
    return _current.use(engine)


@own_state()
def open_engine(
    path: str | os.PathLike[str], mode: str = "latency", device: str | None = None,
    trust: bool = False,
) -> tuple[Engine, bytes]:
    """The compiled engine of a file, and its golden images."""
    path = as_path(path, "path")
    manifest, members = read_runnable(path)
    backend = backend_of(choose_backend(manifest.backend, device))
    place = gpu_of(manifest.backend, device)
    backend.check_compiled(path, manifest.fingerprint, manifest.members, place, trust=trust)
    runner = compile_file(path, manifest, members, mode=mode, device=place, compiled={
        name: members[name] for name in backend.members})
    return Engine(manifest, runner, path, mode=mode, device=device), members[GOLDEN]


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


def read_runnable(path: str | os.PathLike[str]) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and members of an engine file, which this package can make a runner of."""
    manifest, members = read_engine_file(path)
    for name in (NETWORK, GOLDEN):
        if name not in members:
            raise EngineFileError(f"{path}: expected a member {name}, got none")
    if manifest.backend not in BACKENDS or manifest.precision not in PRECISIONS:
        raise EngineFileError(f"{path}: expected a backend of {BACKENDS} and a precision of"
                              f" {PRECISIONS}, got {manifest.backend!r} and {manifest.precision!r}")
    if not are_buckets(manifest.buckets):
        raise EngineFileError(f"{path}: expected buckets of integers that rise from 1, got"
                              f" {manifest.buckets}")
    if manifest.calibration is not None:
        try:
            Decisions.from_dict(manifest.calibration)
        except EngineFileError as error:
            raise EngineFileError(f"{path}: {error}") from error
    return manifest, members


def _check_whole(proto: onnx.ModelProto) -> None:
    """Raise EngineFileError or ValidationError unless the graph is one of plain, complete nodes
    with its weights in it."""
    kinds = onnx.AttributeProto
    attributes = [a for node in proto.graph.node for a in node.attribute]
    if proto.functions or proto.graph.sparse_initializer or any(
            a.type in (kinds.GRAPH, kinds.GRAPHS, kinds.TENSORS, kinds.SPARSE_TENSOR,
                       kinds.SPARSE_TENSORS) for a in attributes):
        raise EngineFileError(f"{NETWORK}: expected plain nodes, got functions, graphs in nodes or"
                              " sparse tensors")
    tensors = [*proto.graph.initializer, *(a.t for a in attributes if a.HasField("t"))]
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors):
        raise EngineFileError(f"{NETWORK}: expected all weights inside the file, got a reference"
                              " to another one")
    context = type(onnx.checker.DEFAULT_CONTEXT)()
    context.ir_version = proto.ir_version
    context.opset_imports = {opset.domain: opset.version for opset in proto.opset_import}
    for node in proto.graph.node:
        onnx.checker.check_node(node, context)


def compile_file(
    path: Path, manifest: Manifest, members: Mapping[str, bytes], *, mode: str = "latency",
    device: torch.device | None = None, compiled: Mapping[str, bytes] | None = None,
    progress: Progress = silent,
) -> Runner:
    """The network of an engine file, compiled; mode, device, compiled, progress: as in
    CompileRequest. Raises EngineFileError and what the backend raises."""
    backend = backend_of(manifest.backend)
    quantisation = None
    try:
        proto = onnx.load_model_from_string(members[NETWORK])
        _check_whole(proto)
        if manifest.precision in KINDS:
            quantisation = Quantisation.from_bytes(members.get(QUANTISATION, b""))
            try:
                check_shifts(proto, quantisation)
            except InputError as error:
                raise EngineFileError(f"{QUANTISATION}: {error}") from error
        return make_runner(manifest.backend, CompileRequest(
            proto, manifest.scoring_spec(), manifest.precision, manifest.buckets, mode, device,
            quantisation, backend.stored_options(path, manifest.fingerprint), compiled or {},
            progress))
    except EngineFileError as error:
        told = str(error)
        again = build_again(path) if any(name in told for name in backend.members) else ""
        raise EngineFileError(f"{path}: {told.removeprefix(f'{path}: ')}{again}") from error
    except ScrdError:
        raise
    # RuntimeError is what OpenVINO throws, the others what reading somebody's graph meets.
    except (AttributeError, DecodeError, IndexError, KeyError, RuntimeError, TypeError, ValueError,
            onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()
        raise EngineFileError(f"{path}: {NETWORK} cannot be compiled:"
                              f" {reason[-1] if reason else type(error).__name__}") from error


@own_state()
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
    here = fingerprint(gpu_of(manifest.backend, device))
    return (engine.version == manifest.versions.get(manifest.backend)
            and all(manifest.fingerprint.get(name) == value for name, value in here.items()))
