"""OpenVINO on the CPU: the default where no GPU is."""

import ctypes
from collections import Counter
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from scrd_fast.backends.backend import Backend, CompileRequest
from scrd_fast.backends.runner import Runner, native_runner
from scrd_fast.errors import BackendUnavailable
from scrd_fast.graph.portable import network_graph
from scrd_fast.graph.quantize import KINDS, quantise
from scrd_fast.machine import bf16_is_capped


def _load_library() -> None:
    """Load OpenVINO's library, which `_openvino` needs, from its wheel.

    Importing the wheel's Python package instead would send an event to its makers and write an
    identifier into the user's home directory, or fail where there is none.
    """
    spec = find_spec("openvino")
    assert spec is not None, "missing() told"
    for folder in spec.submodule_search_locations or ():
        for library in Path(folder).glob("libs/libopenvino.so*"):
            ctypes.CDLL(str(library))


@cache
def _extension() -> ModuleType:
    """The runner in C++; raises BackendUnavailable."""
    try:
        _load_library()
        from scrd_fast import _openvino
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"backend 'openvino': this installation of scrd_fast was built without OpenVINO or for"
            f" another release than {version('openvino')} ({error}); install scrd_fast again with"
            " the openvino release that its pyproject.toml names"
        ) from error
    return _openvino


class _OpenVino(Backend):
    name = "openvino"
    searches_layers = True

    def missing(self) -> str | None:
        if not find_spec("openvino"):
            return "the openvino package is not installed; pip install openvino"
        if not find_spec("scrd_fast._openvino"):
            return ("scrd_fast was installed where OpenVINO was not, without the runner for it;"
                    " install scrd_fast again")
        return None

    def precisions(self) -> list[str]:
        capped = {"BF16"} if bf16_is_capped() else set()
        offered = set(_extension().capabilities()) - capped
        return [p for p in ("int8", "bf16") if p.upper() in offered] + ["fp32"]

    def compile(self, request: CompileRequest) -> Runner:
        """For this CPU.

        fp32: up to the distances. bf16: up to the features, which are handed out in bf16 and never
        copied; computing float32 distances of them in the graph takes 2 % more
        (docs/performance.md). int8: as bf16 (fp32 where the CPU has none), with the network's
        convolutions quantised. In throughput mode the streams take single images: batches would
        keep streams waiting.
        """
        bf16 = request.precision != "fp32" and "bf16" in self.precisions()
        network = network_graph(request.proto, request.spec, features=bf16)
        if request.precision in KINDS:
            assert request.quantisation is not None
            network = quantise(network, request.precision, request.quantisation, base="fp32")
        throughput = request.mode == "throughput"
        native = _extension().OpenVinoRunner(
            network.SerializeToString(), "bf16" if bf16 else "f32",
            [1] if throughput else list(request.buckets), throughput)

        def precision_used() -> dict[str, Any]:
            groups: dict[str, Counter[str]] = {"convolutions": Counter(), "tail": Counter()}
            for name, kind, computed in native.layers():
                if kind == "Convolution":
                    groups["convolutions"][computed] += 1
                elif name.startswith(("tail/", "distance")) and kind != "Reorder":
                    groups["tail"][computed] += 1
            return {group: dict(counts) for group, counts in groups.items()}

        return native_runner(self.name, _extension().version(), native, request.spec,
                             precision_used)


BACKEND = _OpenVino()
