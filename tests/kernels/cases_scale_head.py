"""See compile_kernels.py."""

from collections.abc import Iterator
from typing import Any

from scrd_fast.kernels.scale_head import CHANNELS, PIXELS

FIXED = {"weight": "*fp32", "bias": "*fp32", "out": "*fp32", "channels": "i32:16", "pixels": "i32",
         "feature_n": "i32:16", "CHANNELS": CHANNELS, "PIXELS": PIXELS}


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for features in ("*fp32", "*fp16", "*bf16"):
        for strides in ({"feature_c": "i32", "feature_p": 1},
                        {"feature_c": 1, "feature_p": "i32:16"}):
            yield "scale_head_kernel", FIXED | strides | {"features": features}
