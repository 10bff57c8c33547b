"""OpenVINO on the CPU: the default where no GPU is."""

import ctypes
import warnings
from collections import Counter
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from scrd_fast.backends.backend import Backend, CompileRequest
from scrd_fast.backends.runner import Runner, native_runner
from scrd_fast.errors import BackendUnavailable, EngineFileError, InputError
from scrd_fast.graph.stored import find_weights, split_network
from scrd_fast.machine import bf16_is_capped, why_no_vnni
from scrd_fast.precisions import QUANTISED, UNSATURATED

# Members of an engine file: the graph that it compiles, without weights, and where those are.
GRAPH, PLACES = "openvino.onnx", "openvino.json"


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
    members = (GRAPH, PLACES)

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
        """For this CPU, from what an engine file has stored, which needs neither ONNX nor PyTorch,
        or else from the portable graph.

        In throughput mode the streams take single images: batches would keep streams waiting.
        """
        if request.precision == "int8" and request.source.int8_weight > UNSATURATED and (
                reason := why_no_vnni()):
            warnings.warn("precision 'int8': weights of 8 bits, whose sums may saturate here, as"
                          f" {reason}: scores may differ from those of the build; `scrd-fast"
                          " verify` tells by how much, a build on this machine gives them 7 bits",
                          stacklevel=5)
        compiled = request.compiled or {}
        stored = compiled if set(self.members) <= set(compiled) else _store(request)
        bf16 = request.precision != "fp32" and "bf16" in self.precisions()
        throughput = request.mode == "throughput"
        try:
            graph, weights = find_weights(stored[GRAPH], stored[PLACES], request.source.network)
            native = _extension().OpenVinoRunner(
                graph, weights, "bf16" if bf16 else "f32",
                [1] if throughput else list(request.buckets), throughput)
        except (EngineFileError, InputError) as error:
            raise EngineFileError(f"{GRAPH}: {error}") from error

        def precision_used() -> dict[str, Any]:
            groups: dict[str, Counter[str]] = {"convolutions": Counter(), "tail": Counter()}
            for name, kind, computed in native.layers():
                if kind == "Convolution":
                    groups["convolutions"][computed] += 1
                elif name.startswith(("tail/", "distance")) and kind != "Reorder":
                    groups["tail"][computed] += 1
            return {group: dict(counts) for group, counts in groups.items()}

        runner = native_runner(self.name, _extension().version(), native, request.spec,
                               precision_used)
        return replace(runner, compiled={name: stored[name] for name in self.members})


def _store(request: CompileRequest) -> dict[str, bytes]:
    """The members for a network.

    fp32: up to the distances. Else up to the features, which are handed out in bf16 and never
    copied; computing float32 distances of them in the graph takes 2 % more (docs/performance.md).
    int8: with the network's convolutions quantised.
    """
    from scrd_fast.graph.portable import network_graph
    from scrd_fast.graph.quantize import quantise
    from scrd_fast.torch_state import own_state

    source, precision = request.source, request.precision
    with own_state():
        network = network_graph(source.proto, request.spec, features=precision != "fp32")
        if precision in QUANTISED:
            network = quantise(network, precision, source.quantisation, base="fp32")
    return dict(zip((GRAPH, PLACES), split_network(network, source.weights), strict=True))


BACKEND = _OpenVino()
