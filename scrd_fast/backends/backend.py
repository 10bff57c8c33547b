"""What a backend is, and what it is asked to compile. Loads no runtime."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scrd_fast.backends.source import Source
from scrd_fast.files import Contents
from scrd_fast.machine import Machine
from scrd_fast.progress import Progress, silent
from scrd_fast.spec import ScoringSpec

if TYPE_CHECKING:
    import torch

    from scrd_fast.backends.runner import Runner
    from scrd_fast.backends.tensorrt.plan import PlanTies, TensorRtOptions


@dataclass(frozen=True)
class CompileRequest:
    """A network to compile, and how.

    source: the portable graph, and its quantisation for int8 and fp8. buckets: batch sizes rising
    from 1. mode: "latency" (one stream, all cores) or "throughput" (several streams, where the
    backend has them). device: the GPU, with its index, for a backend that runs on one. options: of
    TensorRT's plans. compiled: where an engine file is loaded, the backend's members of it, by
    name, which spare making them again; None where the network is compiled anew. progress: called
    with (done, total, what).
    """

    source: Source
    spec: ScoringSpec
    precision: str
    buckets: tuple[int, ...]
    mode: str = "latency"
    device: "torch.device | None" = None
    options: "TensorRtOptions | None" = None
    compiled: Mapping[str, Contents] | None = None
    progress: Progress = silent


@dataclass(frozen=True)
class CrossCompiled:
    """What was compiled for machines other than this one.

    version: of the library; members: of an engine file, by name; precision_used: as of a Runner;
    ties: what they are tied to.
    """

    version: str
    members: Mapping[str, Contents]
    precision_used: Mapping[str, Mapping[str, int]]
    ties: "PlanTies"


def build_again(path: str | Path) -> str:
    """What to do with an engine file whose compiled members cannot be used here."""
    return f"; build it again: scrd-fast build --from {path}"


class Backend(ABC):
    """A runtime that compiles networks. Its module exports one, as BACKEND, and loads the runtime
    only when it is asked for something."""

    name: str
    on_gpu = False
    # Whether the layers that int8 leaves out are searched for with this runtime: what one keeps
    # the limits with says little of another.
    searches_layers = False
    # Whether "auto" tries int8: not where nobody has seen it run.
    tries_int8 = True
    # Members of an engine file that it writes and reads: what was compiled, or made ready for it.
    members: tuple[str, ...] = ()

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot be used here, and what to do; None where it can. A GPU is there."""

    @abstractmethod
    def precisions(self) -> list[str]:
        """What this CPU or the current GPU computes in natively, fastest first."""

    def to_offer(self, precision: str) -> str | None:
        """What to do for a precision to be offered, where anything can be done."""
        return None

    @abstractmethod
    def compile(self, request: CompileRequest) -> "Runner":
        """Raises BackendUnavailable, EngineBuildError, EngineFileError, DeviceMemoryError."""

    def check_compiled(  # noqa: B027 - most files hold nothing that is tied to a machine
        self, path: str | Path, built_on: Machine, plan: "PlanTies | None",
        digests: Mapping[str, str], device: "torch.device | None", *, trust: bool,
    ) -> None:
        """Raise EngineFileError unless what an engine file holds compiled may and can run here.

        built_on, plan: of its manifest; digests: SHA-256 of its members; trust: also run what this
        user did not build.
        """

    def ties(self, version: str, options: "TensorRtOptions | None",
             device: "torch.device | None") -> "PlanTies | None":
        """What a network compiled for `device` is tied to besides the machine, for the manifest."""
        return None

    def remember(self, compiled: Mapping[str, Contents]) -> None:  # noqa: B027 - as above
        """Note members as built by this user; raises OutputError."""


class CrossCompiler(Backend):
    """A backend that may also compile for GPUs that are not here.

    targets: their names; none where it does not.
    """

    targets: tuple[str, ...]

    @abstractmethod
    def check_targets(self, targets: Sequence[str], precision: str,
                      options: "TensorRtOptions") -> None:
        """Raise InputError or BackendUnavailable unless it can be used here to compile for these
        GPUs, by name, in a precision ("auto": in some)."""

    @abstractmethod
    def cross_compile(self, request: CompileRequest, targets: Sequence[str]) -> CrossCompiled:
        """Compile for these GPUs; the request's device and mode say nothing. Raises
        BackendUnavailable, EngineBuildError."""
