"""Checks of one version of TensorRT's bindings; two versions cannot be in one process.

python -m tests.tensorrt.check_bindings <names|plugin> <folder>; see conftest.py for the folder.
Prints what is wrong, line by line, and fails where anything is.
"""

import ast
import ctypes
import importlib
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.tensorrt.uses import OBJECTS, TENSORRT_OBJECTS

# Not from tests.conftest, which turns on Triton's interpreter.
ROOT = Path(__file__).parents[2]
# Some of the folder need no TensorRT: a test would not see what they used.
SOURCES = [path for path in sorted((ROOT / "scrd_fast/backends/tensorrt").glob("*.py"))
           if path.name not in ("__init__.py", "backend.py", "flavour.py", "plan.py")]
assert len(SOURCES) >= 5


def load(folder: Path) -> Any:
    """Import the bindings in a folder as `tensorrt`."""
    sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
    for library in sorted(folder.glob("lib*.so.*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    # The package `tensorrt` that users install is another name for these.
    trt = sys.modules["tensorrt"] = importlib.import_module("tensorrt_bindings")
    return trt


def aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> module, of `import tensorrt[.x] [as y]` anywhere in a file."""
    names = [name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    return {name.asname or "tensorrt": name.name if name.asname else "tensorrt" for name in names
            if name.name.partition(".")[0] == "tensorrt"}


def chain(node: ast.AST) -> list[str]:
    """["trt", "X", "Y"] of the expression trt.X.Y; empty for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (start := chain(node.value)):
        return [*start, node.attr]
    return []


def chains(source: str) -> Iterator[tuple[str, ...]]:
    """("tensorrt", "X", "Y") for each use of TensorRT in the source of a module. What is called
    `trt` there is the module of a flavour, wherever it comes from."""
    tree = ast.parse(source)
    modules = aliases(tree)
    for node in ast.walk(tree):
        names = chain(node) if isinstance(node, ast.Attribute) else []
        if names and names[0] in modules:
            yield (*modules[names[0]].split("."), *names[1:])
        elif "trt" in names[:-1]:
            yield ("tensorrt", *names[names.index("trt") + 1 :])


def missing(trt: Any, names: tuple[str, ...]) -> bool:
    """Whether tensorrt.X.Y does not exist."""
    value = trt
    for name in names[1:]:
        if not hasattr(value, name):
            return True
        value = getattr(value, name)
    return False


def missing_names(
    trt: Any, leave_out: Collection[str], *objects: Mapping[str, Collection[str]]
) -> Iterator[str]:
    """Names that the sources, without those left out, and the tables in uses.py take from a
    flavour, and that it has not."""
    for source in SOURCES:
        if source.name in leave_out:
            continue
        used = sorted(set(chains(source.read_text())))
        if not used:
            yield f"{source.name}: no use of TensorRT was found"
        yield from (f"{source.name}: {'.'.join(n)}" for n in used if missing(trt, n))
    for table in objects:
        for name, members in table.items():
            yield from (f"{name}.{member}" for member in members
                        if missing(trt, ("tensorrt", name, member)))


def check_names(trt: Any) -> Iterator[str]:
    """Names that are not TensorRT's."""
    importlib.import_module("tensorrt.plugin")
    yield from missing_names(trt, ("rtx.py",), OBJECTS, TENSORRT_OBJECTS)


def _descriptor(trt: Any, dtype: Any, shape: tuple[int, ...], layout: Any) -> Any:
    trtp = trt.plugin
    described = trtp.TensorDesc(trtp.ShapeExprs(len(shape), _is_dummy=True), dtype)
    described.shape, described.format = trtp.Shape(shape), layout
    return described


def check_plugin(trt: Any) -> Iterator[str]:
    """What TensorRT would find in the plugin, as far as it asks Python for it."""
    from scrd_fast.backends.tensorrt.plugin import NAMESPACE, combination, compile_ptx, register

    register(90)
    plugin = getattr(trt.plugin.op, NAMESPACE).cosine_distances_sm90
    if (plugin.num_outputs, plugin.input_attrs) != (3, {}):
        yield f"{plugin.num_outputs} outputs, attributes {plugin.input_attrs}"
    formats = trt.TensorFormat
    for dtype, name, layout in ((trt.float32, "fp32", formats.HWC), (trt.float16, "fp16",
                                formats.HWC8), (trt.bfloat16, "bf16", formats.LINEAR)):
        channels, sides = (64, 128, 256), (16, 8, 4)
        maps = [_descriptor(trt, dtype, (2, c, side, side), layout)
                for c, side in zip(channels * 2, sides * 2, strict=True)]
        outputs = plugin.register_func(*maps)
        if [(o.dtype, o.ndim) for o in outputs] != [(trt.float32, 3)] * 3:
            yield f"{name}: outputs {[(o.dtype, o.ndim) for o in outputs]}"
        offered = [c for a in plugin.autotune_func(*maps, outputs) for c in a._get_combinations()]
        if [dtype] * 6 + [trt.float32] * 3 not in [c.types for c in offered]:
            yield f"{name}: types {[c.types for c in offered]}"
        if [layout] * 6 + [formats.LINEAR] * 3 not in [c.layouts for c in offered]:
            yield f"{name}: layouts {[c.layouts for c in offered]}"
        if len(offered) != len(combination(name, channels)[1].split(",")[0].split("|")):
            yield f"{name}: {len(offered)} combinations"
        kernel = compile_ptx(90, name, channels, [s * s for s in sides],
                             last=layout != formats.LINEAR)
        entry, ptx, launch, extras = plugin.aot_impl_func(*maps, outputs, 0)
        if (entry, ptx, len(extras)) != (kernel.name, kernel.ptx, 0):
            yield f"{name}: {entry} with {len(extras)} extra arguments"
        if not isinstance(launch, trt.plugin.KernelLaunchParams):
            yield f"{name}: {launch}"


def main() -> None:
    check, folder = sys.argv[1:]
    checks = {"names": check_names, "plugin": check_plugin}
    wrong = list(checks[check](load(Path(folder))))
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
