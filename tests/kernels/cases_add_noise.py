"""See compile_kernels.py."""

from collections.abc import Iterator
from typing import Any

from tests.kernels.cases_simplex_noise import NOISE


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    contiguous = dict.fromkeys(("stride_n", "stride_c", "stride_h"), "i32") | {"stride_w": 1}
    channels_last = contiguous | {"stride_c": 1, "stride_w": "i32"}
    large = dict.fromkeys(("stride_n", "stride_c", "stride_h", "stride_w"), "i64")
    large |= {"octaves": 1, "channels": 1}
    for dtype, strides in (("*fp32", contiguous), ("*fp32", channels_last), ("*fp32", large),
                           ("*fp16", contiguous), ("*bf16", channels_last)):
        yield "add_noise_kernel", NOISE | {
            "images": dtype, "boxes": "*i64", "strengths": "*fp32", "channels": "i32",
            "blocks": "i32",
        } | strides
