"""What a backend is, and what it is asked to compile. Loads no runtime."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrd_fast.progress import Progress, silent
from scrd_fast.spec import ScoringSpec

if TYPE_CHECKING:
    import onnx
    import torch

    from scrd_fast.backends.runner import Runner
    from scrd_fast.backends.tensorrt.plan import TensorRtOptions
    from scrd_fast.graph.quantize import Quantisation


@dataclass(frozen=True)
class CompileRequest:
    """A network to compile, and how.

    proto: what graph.portable.build_graph gives. buckets: batch sizes rising from 1. mode:
    "latency" (one stream, all cores) or "throughput" (several streams, where the backend has
    them). device: the GPU, with its index, for a backend that runs on one. quantisation: for int8
    and fp8. options: of TensorRT's plans. compiled: members of an engine file, by name, which spare
    the compilation. progress: called with (done, total, what).
    """

    proto: "onnx.ModelProto"
    spec: ScoringSpec
    precision: str
    buckets: tuple[int, ...]
    mode: str = "latency"
    device: "torch.device | None" = None
    quantisation: "Quantisation | None" = None
    options: "TensorRtOptions | None" = None
    compiled: Mapping[str, bytes] = field(default_factory=dict)
    progress: Progress = silent


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
    # Members of an engine file that hold what was compiled.
    members: tuple[str, ...] = ()

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot be used here, and what to do; None where it can. A GPU is there."""

    @abstractmethod
    def precisions(self) -> list[str]:
        """What this CPU or the current GPU computes in natively, fastest first."""

    @abstractmethod
    def compile(self, request: CompileRequest) -> "Runner":
        """Raises BackendUnavailable, EngineBuildError, EngineFileError, DeviceMemoryError."""

    def stored_options(
        self, path: str | Path, fingerprint: Mapping[str, Any]
    ) -> "TensorRtOptions | None":
        """The options that an engine file was built with; raises EngineFileError."""
        return None

    def check_compiled(  # noqa: B027 - most files hold nothing compiled
        self, path: str | Path, fingerprint: Mapping[str, Any], digests: Mapping[str, str],
        device: "torch.device | None", *, trust: bool,
    ) -> None:
        """Raise EngineFileError unless what an engine file holds compiled may and can run here.

        digests: SHA-256 of the file's members; trust: also run what this user did not build.
        """

    def ties(self, version: str, options: "TensorRtOptions | None") -> dict[str, Any]:
        """What a compiled network is tied to besides the machine, for the manifest."""
        return {}

    def remember(self, compiled: Mapping[str, bytes]) -> None:  # noqa: B027 - as above
        """Note members as built by this user; raises OutputError."""
