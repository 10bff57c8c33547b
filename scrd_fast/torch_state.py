"""PyTorch as this package's code expects it, whatever the caller has set; and the caller's again.

What belongs to the calling thread (inference and grad mode, autocast, default device, NumPy's
handling of underflow and the like) is seen by nobody else meanwhile. The default dtype, cuDNN's
settings and the random generators are the process's: the first is changed only where it is not
float32, and given back by the last of the threads that need it, as cuDNN's settings are; the
generators are lent for as long as weights are drawn or a library is imported. A thread of the
caller's that relies on them at the very same time is not safe.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Lock, RLock

import numpy as np
import torch

_drawing = RLock()


class _Shared:
    """A setting of the whole process, made by the first of the threads that need it and undone by
    the last."""

    def __init__(self, setting: Callable[[], AbstractContextManager[None]]) -> None:
        self._setting = setting
        self._lock = Lock()
        self._inside = 0
        self._made: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._made = self._setting()
                self._made.__enter__()
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                assert self._made is not None
                self._made.__exit__(None, None, None)


@contextmanager
def _default_float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


_float32 = _Shared(_default_float32)

#: cuDNN with float32 products of float32 (TF32 keeps 11 bits), and with the algorithms that its
#: heuristics choose, which are the same each time. Its settings are the process's.
exact_convolutions = _Shared(lambda: torch.backends.cudnn.flags(
    enabled=True, benchmark=False, deterministic=True, allow_tf32=False, fp32_precision="ieee"))


@contextmanager
def own_state() -> Iterator[None]:
    """Gradients recorded, no autocast, float32 and the CPU by default; also a decorator.

    Settings that are the caller's to choose (threads, deterministic algorithms, TF32) stay.
    """
    with ExitStack() as stack:
        stack.enter_context(_float32)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # A device context makes each call of PyTorch slower: only where there is one already.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        # NumPy's own default: a caller may have made all of them errors.
        stack.enter_context(np.errstate(all="warn", under="ignore"))
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PyTorch's CPU generator starts from `seed`, and is the caller's again afterwards.

    One thread at a time: others that are seeded wait. GPUs' generators are left alone.
    """
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
