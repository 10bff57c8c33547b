"""PyTorch as this package's code expects it, whatever the caller has set; and the caller's again.

What belongs to the calling thread (inference and grad mode, autocast, default device, NumPy's
handling of underflow and the like) is seen by nobody else meanwhile. The default dtype and the
random generators are the process's: the one is changed only where it is not float32, and given back
by the last of the threads that need it; the others are lent for as long as weights are drawn or a
library is imported. A thread of the caller's that relies on them at the very same time is not safe.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock

import numpy as np
import torch

_drawing = RLock()


class _Float32:
    """The default dtype is float32 while anybody is inside."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._before = torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = torch.get_default_dtype()
                if self._before != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._before != torch.float32:
                torch.set_default_dtype(self._before)


_float32 = _Float32()


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
