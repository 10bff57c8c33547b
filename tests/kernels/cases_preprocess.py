"""See compile_kernels.py."""

from collections.abc import Iterator
from typing import Any

from scrd_fast.kernels.preprocess import BLOCK

FIXED = {"rows": "*i32", "row_fractions": "*fp32", "columns": "*i32", "column_fractions": "*fp32",
         "size": "i32", "blocks": "i32", "BLOCK": BLOCK,
         **dict.fromkeys([f"{name}_{c}" for name in ("scale", "offset") for c in range(3)], "fp32")}
GREY = {"COLOUR": False, "image_n": "i32", "image_h": "i32", "image_w": 1, "image_c": "i32"}
COLOUR = {"COLOUR": True, "image_n": "i32", "image_h": "i32", "image_w": "i32", "image_c": 1}
LARGE = COLOUR | dict.fromkeys(("image_n", "image_h", "image_w", "image_c"), "i64")
FIRST = {"out_n": "i32", "out_c": "i32", "out_h": "i32", "out_w": 1}
LAST = {"out_n": "i32", "out_c": 1, "out_h": "i32", "out_w": "i32"}


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for images in ("*u8", "*u16", "*fp32", "*fp64"):
        for layout, out, strides in (
                (GREY, "*fp32", FIRST), (COLOUR, "*bf16", FIRST), (COLOUR, "*fp16", LAST),
                (LARGE, "*fp32", LAST)):
            yield "preprocess_kernel", FIXED | layout | strides | {"images": images, "out": out}
