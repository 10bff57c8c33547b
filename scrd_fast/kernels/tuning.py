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
    return triton.autotune(configs=kept, key=key, cache_results=True, do_bench=_time)


def _time(call: Callable[[], object], quantiles: Sequence[float]) -> Any:
    """Milliseconds of a call at each quantile; as long as kernels of some microseconds need."""
    return triton.testing.do_bench(call, warmup=5, rep=20, quantiles=quantiles)
