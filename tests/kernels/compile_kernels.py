"""Compiles every kernel ahead of time, without a GPU, and prints what it takes as JSON.

Run in a process of its own, without TRITON_INTERPRET: python -m tests.kernels.compile_kernels
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (80, 90, 100)
BIN = Path(triton.__file__).parent / "backends/nvidia/bin"

# A string is the type of a run-time argument ("*fp16", "i32", or "i32:16", a multiple of 16, for
# which Triton compiles another kernel), anything else the value of a compile-time one. The
# compile-time arguments of the autotuner's configurations are added; "since" is the first
# generation that it is for.
Arguments = dict[str, Any]


def cases() -> Iterator[tuple[str, str, Arguments]]:
    """(module, kernel, arguments) of everything in cases_<module>.py."""
    for file in sorted(Path(__file__).parent.glob("cases_*.py")):
        for kernel, arguments in import_module(f"tests.kernels.{file.stem}").cases():
            yield file.stem.removeprefix("cases_"), kernel, arguments


def dumped(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([BIN / "cuobjdump", option, file.name],
                              capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread, bytes of stack (where spills go) and of local memory."""
    text = dumped(cubin, "--dump-resource-usage")
    fields = dict(f.split(":") for f in text.split() if f.startswith(("REG:", "STACK:", "LOCAL:")))
    return {name: int(value) for name, value in fields.items()}


def compile_case(kernel: Any, arguments: Arguments, capability: int) -> Iterator[dict[str, Any]]:
    """Each configuration of the kernel, compiled for these arguments."""
    configurations = getattr(kernel, "configs", [triton.Config({})])
    function = getattr(kernel, "fn", kernel) if hasattr(kernel, "configs") else kernel
    for config in configurations:
        constants = {n: v for n, v in arguments.items() if not isinstance(v, str)} | config.kwargs
        signature = {n: "constexpr" if n in constants else arguments[n].removesuffix(":16")
                     for n in function.arg_names}
        # Pointers as torch allocates: aligned to 16 bytes.
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(function.arg_names)
                   if signature[n].startswith("*") or str(arguments.get(n)).endswith(":16")}
        compiled = triton.compile(
            ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": config.num_warps, "num_stages": config.num_stages})
        cubin = compiled.asm["cubin"]
        ptx = compiled.asm["ptx"]
        # Both compilers may fuse a product and a sum.
        fused = 0
        if ".f64" in ptx:
            fused = ptx.count("fma.rn.f64") + dumped(cubin, "--dump-sass").count("DFMA")
        yield {"config": str(config), "shared": compiled.metadata.shared, "fma_f64": fused,
               "loads_of_16_bytes": len(
                   re.findall(r"ld\.global[\w:.]*\.(?:v4\.\w32|v2\.\w64)", ptx)),
               "float8": sorted(set(re.findall(r"\bcvt\.[\w.]*e4m3[\w.]*", ptx))),
               "tensor_cores": sorted(set(re.findall(r"\b(?:wgmma|tcgen05|mma)\b", ptx))),
               **resources(cubin)}


def main() -> None:
    assert os.environ.get("TRITON_INTERPRET") != "1"
    only = sys.argv[1:]
    for module, name, arguments in cases():
        kernel = getattr(import_module(f"scrd_fast.kernels.{module}"), name)
        since = arguments.pop("since", 0)
        for capability in CAPABILITIES:
            if (only and name not in only) or capability < since:
                continue
            for row in compile_case(kernel, arguments, capability):
                print(json.dumps({"kernel": name, "sm": capability, **row,
                                  "arguments": {k: str(v) for k, v in arguments.items()}}),
                      flush=True)


if __name__ == "__main__":
    main()
