"""See compile_kernels.py."""

from collections.abc import Iterator
from typing import Any

from tests.kernels.cases_simplex_noise import NOISE


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    contiguous = dict.fromkeys(("stride_n", "stride_c", "stride_h"), "i32") | {"stride_w": 1}
    channels_last = contiguous | {"stride_c": 1, "stride_w": "i32"}
    large = dict.fromkeys(("stride_n", "stride_c", "stride_h", "stride_w"), "i64")
    for dtype in ("*fp32", "*fp16", "*bf16"):
        for strides in (contiguous, channels_last, large | {"octaves": 1, "channels": 1}):
            yield "add_noise_kernel", NOISE | {
                "images": dtype, "boxes": "*i64", "strengths": "*fp32", "channels": "i32",
                "blocks": "i32",
            } | strides
