"""The teacher's features of clean images, kept from the first epoch on: later ones repeat them.

The teacher is frozen and clean images are not augmented, so half of what it computes in a step is
known by then.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.model.scrd import Scales

# Of the memory that is free before the first step, which takes much of the other part.
SHARE_OF_FREE_MEMORY = 0.4


class FeatureCache:
    """The teacher's features of images by index, in its precision, where all of them fit.

    A batch is taken from here where each of its images has been seen; else it is computed as a
    whole, so that the teacher sees batches of one size alone. In these an image has the same bits
    at any place and beside any others, so nothing depends on what is kept.
    """

    def __init__(self, count: int, limit: float) -> None:
        """count: of images, whose indices are below it; limit: bytes for all of them."""
        self._limit = limit
        self._known = np.zeros(count, dtype=bool)
        self._maps: list[Tensor] = []  # (count, h, w, C) each

    def features(self, indices: NDArray[np.int64], compute: Callable[[], Scales]) -> Scales:
        """Of the images `indices` (N,), by `compute` where some are not known."""
        if self._known[indices].all():
            rows = torch.from_numpy(indices)
            first, second, third = (maps.index_select(0, rows).permute(0, 3, 1, 2)
                                    for maps in self._maps)
            return first, second, third
        found = compute()
        self._keep(indices, found)
        return found

    def _keep(self, indices: NDArray[np.int64], found: Scales) -> None:
        count = len(self._known)
        if not self._maps:
            if count * sum(f[0].nbytes for f in found) > self._limit:
                return
            # The system gives the pages when they are written to.
            self._maps = [f.new_empty(count, *f.shape[2:], f.shape[1]) for f in found]
        for maps, f in zip(self._maps, found, strict=True):
            maps[torch.from_numpy(indices)] = f.permute(0, 2, 3, 1)
        self._known[indices] = True


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that the process may still take: of the machine's and of its control groups' limits.

    root: where proc and sys are found. 0 where the system does not tell (only Linux does).
    """
    listed = root / "proc/meminfo"
    if not listed.exists():
        return 0
    available = next(line for line in listed.read_text().splitlines() if "MemAvailable" in line)
    return min([int(available.split()[1]) * 1024, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes that each control group with a limit leaves, of either version of the interface."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            top, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", (
                "memory.usage_in_bytes")
        elif controllers == "":
            top, limit, usage = "sys/fs/cgroup", "memory.max", "memory.current"
        else:
            continue
        # In a container the path may be that outside, and the group itself be at the top.
        for folder in (Path(path), *Path(path).parents):
            inside = root / top / str(folder).lstrip("/")
            told = (inside / limit).read_text().strip() if (inside / limit).exists() else "max"
            if told != "max":
                yield max(0, int(told) - int((inside / usage).read_text()) + _file_pages(inside))


def _file_pages(group: Path) -> int:
    """Bytes of a group's usage that are files' pages, which it gives back when memory is short."""
    found = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(found.get("total_inactive_file", found.get("inactive_file", 0)))
