"""Autotuning, shared by the kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import triton
from triton import knobs


def autotune(configs: Sequence[triton.Config], key: list[str]) -> Callable[[Any], Any]:
    """triton.autotune; the first configuration alone under Triton's interpreter, which has no
    device to time on.

    The choice is kept on disk: another process then sums in the same order.
    """
    kept = list(configs)[: 1 if knobs.runtime.interpret else None]
    return triton.autotune(configs=kept, key=key, cache_results=True)
