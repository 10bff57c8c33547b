"""Figures of steps, read without holding a GPU up: it is given the next step before it is asked of
the last."""

from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor

_Item = TypeVar("_Item")


class HostCopy:
    """Values (K,) on their way from the device in one go; the first look waits for them."""

    def __init__(self, values: Tensor) -> None:
        values = values.detach()
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        self._copied = (torch.cuda.current_stream(values.device).record_event()
                        if values.is_cuda else None)

    @cached_property
    def values(self) -> list[float]:
        if self._copied is not None:
            self._copied.synchronize()
        found: list[float] = self._values.tolist()
        return found


class Late(Generic[_Item]):
    """Hands on to `tell` what is added, of a GPU the item before instead of the newest."""

    def __init__(self, tell: Callable[[_Item], None], device: torch.device) -> None:
        self._tell, self._most = tell, 1 if device.type == "cuda" else 0
        self._untold: deque[_Item] = deque()

    def add(self, item: _Item, *, at_once: bool) -> None:
        """at_once: tell of this item, too."""
        self._untold.append(item)
        while len(self._untold) > (0 if at_once else self._most):
            self._tell(self._untold.popleft())
