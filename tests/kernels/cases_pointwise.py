"""See compile_kernels.py."""

from collections.abc import Iterator
from typing import Any

SIZES = {"rows": "i32:16", "height": "i32:16", "width": "i32:16", "image_stride": "i32:16",
         "row_stride": "i32:16", "columns": "i32:16"}
KINDS = (
    {"STEP": 1, "SHUFFLE": False, "RESIDUAL": False, "RELU": True},  # first of a bottleneck
    {"STEP": 1, "SHUFFLE": False, "RESIDUAL": True, "RELU": True},  # its last
    {"STEP": 2, "SHUFFLE": False, "RESIDUAL": False, "RELU": False},  # a shortcut that halves
    {"STEP": 1, "SHUFFLE": True, "RESIDUAL": False, "RELU": True},  # upsampling
    {"STEP": 1, "SHUFFLE": True, "RESIDUAL": False, "RELU": False},  # a shortcut that doubles
)


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for dtype, channels, kind in (*(("*fp16", 512, kind) for kind in KINDS),
                                  ("*bf16", 512, KINDS[1]), ("*fp16", 64, KINDS[1])):
        tensors = dict.fromkeys(("x", "weight", "bias", "residual", "out"), dtype)
        yield "pointwise_kernel", tensors | SIZES | kind | {"CHANNELS": channels}
