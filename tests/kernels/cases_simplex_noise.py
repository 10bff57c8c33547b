"""See compile_kernels.py."""

from collections.abc import Iterator
from typing import Any

from scrd_fast.kernels.simplex_noise import BLOCK

NOISE = {"tables": "*u8", "cases": "*i64", "positions": "*fp64", "weights": "*fp32",
         "octaves": "i32", "BLOCK": BLOCK}


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    one = {"octaves": 1, "blocks": 1, "height": 1}  # torch.compile makes a 1 a constant
    for change in ({}, one, {"points": "i64"}):
        yield "simplex_noise_kernel", NOISE | {
            "out": "*fp32", "points": "i32", "blocks": "i32", "height": "i32", "width": "i32",
        } | change
