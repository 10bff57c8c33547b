"""Fused convolutions by cuDNN's graph API, through NVIDIA's nvidia-cudnn-frontend.

PyTorch's own calls take the first plan of cuDNN's heuristics, and give a convolution without a
residual sum its own output as one, times 0. Here the graph is convolution, bias, residual sum and
ReLU as the layer has them, and a plan is any engine of cuDNN with any of its knobs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from weakref import finalize

import torch
from torch import Tensor

from scrd_fast.backends.convolutions import Choice, PlanRefused
from scrd_fast.backends.layers import TYPES, Layer, Operands, Way, to_space
from scrd_fast.graph.tensors import EIGHT_BITS

# What cuDNN notes of plans that sum in another order each time, or in another precision.
UNWANTED = ("NONDETERMINISTIC", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "WINOGRAD")
_PACKAGE, _LEAST = "nvidia-cudnn-frontend", (1, 26)


def frontend_version() -> str | None:
    """Of nvidia-cudnn-frontend; None where it is not installed."""
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return None


def frontend_missing() -> str | None:
    """Why cuDNN's plans cannot be had here, and what to do; None where they can."""
    found = frontend_version()
    if found is not None and tuple(map(int, found.split(".")[:2])) >= _LEAST:
        return None
    return (f"expected {_PACKAGE} {'.'.join(map(str, _LEAST))} or later, got {found or 'none'}:"
            " pip install 'scrd-fast[cudnn]'")


class CudnnPlanner:
    """Plans of cuDNN for fused convolutions on one GPU."""

    def __init__(self, device: torch.device | None, **where: Any) -> None:
        """device: the GPU that plans run on. Or none, and where: what `cudnn.pygraph` takes in its
        place, device_property of a GPU that is not here: plans are then compiled, and not run."""
        import cudnn

        self._cudnn, self._device = cudnn, device
        if device is not None:
            with torch.cuda.device(device):
                handle = cudnn.create_handle()
            where = {"handle": handle}
            # Not at the interpreter's end, when CUDA may be gone.
            finalize(self, cudnn.destroy_handle, handle).atexit = False
        self._where = where

    def version(self) -> int:
        """Of cuDNN itself, such as 91900."""
        return int(self._cudnn.backend_version())

    def candidates(self, layer: Layer, most: int) -> Sequence[Choice]:
        """At most so many plans for a layer, those first that cuDNN's heuristics like best."""
        cudnn = self._cudnn
        found: list[Choice] = []
        try:
            with self._refusals(layer):
                graph, _ = self._graph(layer)
                graph.create_execution_plans([cudnn.heur_mode.A])
                for i in range(graph.get_execution_plan_count()):
                    engine, knobs = graph.get_engine_and_knobs_at_index(i)
                    # A knob that the frontend has no name for cannot be set again.
                    if cudnn.knob_type.NOT_SET not in knobs:
                        found.append(Choice(int(engine), tuple(sorted(
                            (int(knob.value), int(value)) for knob, value in knobs.items()))))
        except PlanRefused:
            return []
        return found[:most]

    def way(self, layer: Layer, choice: Choice) -> Way:
        """A plan, compiled; raises PlanRefused, as do calls of it. Refused are, too, plans that sum
        in another precision, or in another order each time."""
        cudnn, device = self._cudnn, self._device
        with self._refusals(layer):
            graph, tensors = self._graph(layer)
            graph.deselect_numeric_notes([getattr(cudnn.numerical_note, name) for name in UNWANTED])
            graph.create_execution_plan(choice.engine, {
                cudnn.knob_type(knob): value for knob, value in choice.knobs})
            graph.build_plans()
        size = graph.get_workspace_size()
        handle = self._where.get("handle")

        def run(o: Operands) -> Tensor:
            out = torch.empty(
                (layer.images, layer.outputs, layer.output_side(layer.height),
                 layer.output_side(layer.width)), dtype=TYPES[layer.writes], device=device,
                memory_format=torch.channels_last)
            workspace = torch.empty(size, dtype=torch.uint8, device=device)
            # The plan is of one layout; other ones would be read as if they were it.
            o = replace(o, x=_channels_last(o.x), weight=_channels_last(o.weight),
                        residual=None if o.residual is None else _channels_last(o.residual))
            given = {tensor: out if role == "out" else getattr(o, role)
                     for role, tensor in tensors.items()}
            cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(device).cuda_stream)
            with self._refusals(layer):
                graph.execute(given, workspace, handle=handle)
            return to_space(out) if layer.shuffle else out

        return run

    @contextmanager
    def _refusals(self, layer: Layer) -> Iterator[None]:
        try:
            yield
        except torch.AcceleratorError:
            raise  # the GPU is at fault
        # The frontend's, for what it does not know: TypeError, ValueError.
        except (RuntimeError, TypeError, ValueError,
                self._cudnn.cudnnGraphNotSupportedError) as error:
            raise PlanRefused(f"cuDNN does not run {layer}: {error}") from error

    def _graph(self, layer: Layer) -> tuple[Any, dict[str, Any]]:
        """A layer's operations, and the tensors that a call gives: of `Operands`, and "out"."""
        cudnn = self._cudnn
        kinds, tensors = self._kinds(), {}
        exact = kinds["fp32"]
        graph = cudnn.pygraph(io_data_type=exact, intermediate_data_type=exact,
                              compute_data_type=exact, **self._where)
        height, width = layer.output_side(layer.height), layer.output_side(layer.width)

        def tensor(role: str, kind: Any, *shape: int) -> Any:
            _, channels, rows, columns = shape
            tensors[role] = graph.tensor(
                name=role, dim=shape, data_type=kind,
                stride=[channels * rows * columns, 1, columns * channels, channels])
            return tensors[role]

        reads = kinds[layer.reads]
        x = tensor("x", reads, layer.images, layer.channels, layer.height, layer.width)
        weight = tensor("weight", reads, layer.outputs, layer.channels, layer.kernel, layer.kernel)
        sums = cudnn.data_type.INT32 if layer.reads == "int8" else exact
        value = graph.conv_fprop(
            image=x, weight=weight, padding=[layer.padding] * 2, stride=[layer.stride] * 2,
            dilation=[1, 1], compute_data_type=sums, name="convolution")
        value.set_data_type(sums)
        if layer.eight_bits:
            value = graph.mul(a=value, b=tensor("scale", exact, 1, layer.outputs, 1, 1))
        # The sum before the bias: in the other order cuDNN offers its slowest kind of engine alone.
        if layer.residual is not None:
            residual = tensor("residual", kinds[layer.residual], layer.images, layer.outputs,
                              height, width)
            if layer.residual in EIGHT_BITS:
                residual = graph.mul(a=residual, b=tensor("residual_scale", exact, 1, 1, 1, 1))
            value = graph.add(a=value, b=residual)
        if layer.bias:
            value = graph.bias(input=value, bias=tensor(
                "bias", exact if layer.eight_bits else reads, 1, layer.outputs, 1, 1))
        if layer.relu:
            value = graph.relu(input=value)
        if layer.writes in EIGHT_BITS:
            value = graph.mul(a=value, b=tensor("out_factor", exact, 1, 1, 1, 1))
        tensors["out"] = value.set_output(True).set_data_type(kinds[layer.writes])
        graph.validate()
        graph.build_operation_graph()
        return graph, tensors

    def _kinds(self) -> dict[str, Any]:
        kinds = self._cudnn.data_type
        return {"fp32": kinds.FLOAT, "fp16": kinds.HALF, "bf16": kinds.BFLOAT16,
                "int8": kinds.INT8, "fp8": kinds.FP8_E4M3}


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)
