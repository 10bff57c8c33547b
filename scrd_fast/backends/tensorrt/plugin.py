"""The cosine distances as a plugin of TensorRT: the Triton kernel, ahead of time, as PTX.

Built with TensorRT's experimental module tensorrt.plugin. A plan with this plugin carries the
kernel itself: whoever runs it needs neither Triton nor this module.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import onnx
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from scrd_fast.errors import BackendUnavailable, expect
from scrd_fast.kernels.anomaly_map import DISTANCE_CONFIGS, plugin_distances_kernel
from scrd_fast.ops.implementations import interpreted
from scrd_fast.spec import STRIDES

NAMESPACE = "scrd_fast"
TENSORS = 9  # three teacher and three student maps, three distances

# What TensorRT calls channels-last. HWC8 pads the channels to a multiple of 8, so that it is
# channels-last only where they are one; convolutions in half precision write it.
_CHANNELS_LAST = {"fp32": "HWC", "fp16": "HWC8", "bf16": "HWC8"}
# No tactics: several kernels in one plugin have been reported to be mixed up on Blackwell.
_CONFIG = DISTANCE_CONFIGS[0]
_ENTRY = re.compile(r"\.entry\s+[\w$]+\s*\(([^)]*)\)")


class CompiledKernel(NamedTuple):
    """name: of the entry in `ptx`; shared: bytes of dynamic shared memory; threads: per block."""

    name: str
    ptx: str
    shared: int
    threads: int


def strip_hidden_parameters(ptx: str, declared: int) -> str:
    """PTX whose entry takes its first `declared` parameters only.

    Triton appends pointers to scratch memory, which TensorRT does not pass. Raises
    BackendUnavailable where the kernel reads one of them, or has fewer than `declared`.
    """
    entry = _ENTRY.search(ptx)
    parameters = entry[1].split(",") if entry else []
    if entry is None or len(parameters) < declared:
        raise BackendUnavailable(
            f"plugin: expected PTX with an entry of at least {declared} parameters, got"
            f" {len(parameters)}; Triton {triton.__version__} is not known to this package")
    body = ptx[entry.end() :]
    for parameter in parameters[declared:]:
        name = parameter.split()[-1]
        if re.search(rf"{re.escape(name)}(?![\w$])", body):
            raise BackendUnavailable(
                f"plugin: the kernel that Triton {triton.__version__} made reads its hidden"
                f" parameter {name}, which TensorRT cannot pass")
    kept = ",".join(parameters[:declared])
    return f"{ptx[: entry.start(1)]}{kept}\n{ptx[entry.end(1) :]}"


def programs(pixels: Sequence[int], *, last: bool) -> int:
    """Programs per image, given each scale's pixels."""
    tile = _CONFIG.kwargs["SLOW" if last else "FAST"]
    return sum(triton.cdiv(p, tile) for p in pixels)


def compile_ptx(capability: int, dtype: str, channels: Sequence[int], pixels: Sequence[int], *,
                last: bool = False) -> CompiledKernel:
    """The kernel for a GPU and a network, made without a GPU.

    capability: 90 for compute capability 9.0; dtype: "fp32", "fp16" or "bf16"; channels, pixels:
    of the three scales; last: channels-last inputs, else contiguous ones. Raises InputError and
    BackendUnavailable.
    """
    expect(dtype in _CHANNELS_LAST, "dtype", f"one of {tuple(_CHANNELS_LAST)}", repr(dtype))
    if interpreted():
        raise BackendUnavailable("plugin: Triton compiles no kernel with TRITON_INTERPRET=1")
    values = {**_CONFIG.kwargs, "LAST": last}
    for k in range(3):
        values |= {f"C{k + 1}": channels[k], f"P{k + 1}": pixels[k]}
    pointers = {name: f"*{dtype}" if name[0] in "ts" else "*fp32"
                for name in plugin_distances_kernel.arg_names[:TENSORS]}
    # TensorRT aligns its tensors to far more than 16 bytes.
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(TENSORS)}
    with knobs.compilation.scope():
        # A plan must not name the folders of the machine that built it.
        knobs.compilation.disable_line_info = True
        compiled = triton.compile(
            ASTSource(fn=plugin_distances_kernel, constexprs=values, attrs=aligned,
                      signature=pointers | dict.fromkeys(values, "constexpr")),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": _CONFIG.num_warps, "num_stages": _CONFIG.num_stages})
    return CompiledKernel(compiled.metadata.name,
                          strip_hidden_parameters(compiled.asm["ptx"], TENSORS),
                          compiled.metadata.shared, 32 * compiled.metadata.num_warps)


def combination(dtype: str, channels: Sequence[int]) -> tuple[str, str]:
    """(types, formats) of the plugin's nine tensors, in the words of AutoTuneCombination: the six
    maps share one format, contiguous or, where nothing is padded, channels-last."""
    formats = "LINEAR"
    if dtype == "fp32" or all(c % 8 == 0 for c in channels):
        formats = f"LINEAR|{_CHANNELS_LAST[dtype]}"
    return (",".join([dtype.upper()] * 6 + ["FP32"] * 3),
            ",".join([formats] * 6 + ["LINEAR"] * 3))


def _dtypes() -> dict[Any, str]:
    import tensorrt as trt

    return {trt.float32: "fp32", trt.float16: "fp16", trt.bfloat16: "bf16"}


@lru_cache
def register(capability: int) -> Callable[..., Any]:
    """Make the plugin for GPUs of this compute capability (90 for 9.0) known to TensorRT.

    Returns the plugin: network.add_plugin(register(90)(t1, t2, t3, s1, s2, s3), aot=True) adds a
    layer of three outputs, float32 (N, h_k, w_k), for the teacher's and the student's feature
    maps (N, C_k, h_k, w_k), all six float32, float16 or bfloat16; only N may be dynamic. Imports
    tensorrt. What it raises while TensorRT builds is printed and ends the build.
    """
    # The capability is part of the name: TensorRT 10 restores no integer attribute under NumPy
    # 2.4, and asks a plugin with attributes for more than ahead-of-time ones have.
    import tensorrt as trt
    import tensorrt.plugin as trtp

    name = f"cosine_distances_sm{capability}"
    identity = f"{NAMESPACE}::{name}"
    dtypes = _dtypes()

    def dtype_of(*maps: trtp.TensorDesc) -> str:
        found = {m.dtype for m in maps}
        expect(len(found) == 1 and found <= dtypes.keys(), "plugin inputs",
               "one of float32, float16, bfloat16 for all six", found)
        return dtypes[found.pop()]

    # TensorRT reads the signatures: the same names, in this order, and every annotation.
    @trtp.register(identity, lazy_register=True)
    def describe(
        t1: trtp.TensorDesc, t2: trtp.TensorDesc, t3: trtp.TensorDesc, s1: trtp.TensorDesc,
        s2: trtp.TensorDesc, s3: trtp.TensorDesc,
    ) -> tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc]:
        dtype_of(t1, t2, t3, s1, s2, s3)
        d1, d2, d3 = (
            trtp.from_shape_expr((t.shape_expr[0], t.shape_expr[2], t.shape_expr[3]), trt.float32)
            for t in (t1, t2, t3))
        return d1, d2, d3

    @trtp.autotune(identity)
    def autotune(
        t1: trtp.TensorDesc, t2: trtp.TensorDesc, t3: trtp.TensorDesc, s1: trtp.TensorDesc,
        s2: trtp.TensorDesc, s3: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        types, formats = combination(dtype_of(t1, t2, t3, s1, s2, s3),
                                     [t.shape[1] for t in (t1, t2, t3)])
        return [trtp.AutoTuneCombination(types, formats)]

    @trtp.aot_impl(identity)
    def implement(
        t1: trtp.TensorDesc, t2: trtp.TensorDesc, t3: trtp.TensorDesc, s1: trtp.TensorDesc,
        s2: trtp.TensorDesc, s3: trtp.TensorDesc,
        outputs: tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc], tactic: int,
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        last = t1.format != trt.TensorFormat.LINEAR
        pixels = [t.shape[2] * t.shape[3] for t in (t1, t2, t3)]
        kernel = compile_ptx(capability, dtype_of(t1, t2, t3, s1, s2, s3),
                             [t.shape[1] for t in (t1, t2, t3)], pixels, last=last)
        launch = trtp.KernelLaunchParams(
            grid_x=t1.shape_expr[0] * programs(pixels, last=last),
            block_x=kernel.threads, shared_mem=kernel.shared)
        return kernel.name, kernel.ptx, launch, trtp.SymIntExprs(0)

    return getattr(getattr(trtp.op, NAMESPACE), name)


def feature_names(graph: onnx.ModelProto) -> list[str]:
    """Of a graph with explicit precisions, the tensors that the plugin reads: three teacher and
    three student maps, before they are cast for the distances."""
    made = {node.output[0]: node for node in graph.graph.node}
    names = {node.name: node.input for node in graph.graph.node}

    def before_casts(name: str) -> str:
        while name in made and made[name].op_type == "Cast":
            name = made[name].input[0]
        return name

    pairs = [names[f"tail/product{k}"] for k in range(len(STRIDES))]
    return [before_casts(pair[side]) for side in range(2) for pair in pairs]


def insert(network: Any, graph: onnx.ModelProto, capability: int) -> None:
    """Put the plugin into a parsed network in the place of the distances in `graph`, whose nodes
    then lead nowhere and are left out by TensorRT. Raises InputError and BackendUnavailable."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    made = {layer.get_output(i).name: layer.get_output(i)
            for layer in layers for i in range(layer.num_outputs)}
    maps = [made[name] for name in feature_names(graph)]
    # Once before, because TensorRT keeps errors of its callbacks to itself.
    compile_ptx(capability, _dtypes()[maps[0].dtype], [m.shape[1] for m in maps[:3]],
                [m.shape[2] * m.shape[3] for m in maps[:3]])
    plugin = network.add_plugin(register(capability)(*maps), aot=True)
    distances = {f"distance{k}": plugin.get_output(k) for k in range(len(STRIDES))}
    for layer in layers:
        for i in range(layer.num_inputs):
            tensor = layer.get_input(i)
            if tensor is not None and tensor.name in distances:
                layer.set_input(i, distances[tensor.name])
