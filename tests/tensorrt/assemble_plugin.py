"""Compiles the plugin for every GPU generation, assembles its PTX, and prints what came, as JSON.

In a process of its own, without TRITON_INTERPRET: python -m tests.tensorrt.assemble_plugin
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton

from scrd_fast.backends.tensorrt.plugin import compile_ptx

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
CHANNELS, PIXELS = (256, 512, 1024), (64 * 64, 32 * 32, 16 * 16)


def assembled(ptx: str, capability: int) -> str:
    """What ptxas says of registers and spills."""
    ptxas = BIN / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "plugin.ptx"
        source.write_text(ptx)
        target = f"sm_{capability}a" if f".target sm_{capability}a" in ptx else f"sm_{capability}"
        done = subprocess.run([ptxas, "-v", f"--gpu-name={target}", source, "-o",
                               source.with_suffix(".cubin")], capture_output=True, text=True,
                              check=True)
    return done.stderr


def main() -> None:
    for capability in (80, 90, 100):
        for dtype in ("fp32", "fp16", "bf16"):
            for last in (False, True):
                kernel = compile_ptx(capability, dtype, CHANNELS, PIXELS, last=last)
                entry = kernel.ptx[kernel.ptx.index(".entry") :]
                code = re.sub("//.*", "", kernel.ptx)
                print(json.dumps({
                    "sm": capability, "dtype": dtype, "last": last,
                    "parameters": re.findall(r"\.param (\.\w+)", entry[: entry.index(")")]),
                    "shared": kernel.shared, "threads": kernel.threads,
                    "threads_in_ptx": re.findall(r"^\.reqntid (.+)", code, re.MULTILINE),
                    "paths": "/" in code,
                    "named": f" {kernel.name}(" in kernel.ptx.replace("\n", " "),
                    "ptxas": assembled(kernel.ptx, capability)}), flush=True)


if __name__ == "__main__":
    main()
