"""See compile_kernels.py."""

from collections.abc import Iterator
from typing import Any

from scrd_fast.kernels.eight_bits import BLOCK


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for x in ("*fp16", "*bf16", "*fp32"):
        for out, since in (("*i8", 80), ("*fp8e4nv", 89)):
            yield "eight_bits_kernel", {"x": x, "factor": "*fp32", "out": out, "count": "i32:16",
                                        "BLOCK": BLOCK, "since": since}
