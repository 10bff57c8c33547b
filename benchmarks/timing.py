"""Timing calls in turn, so that a busy machine hurts all of them, and what is noted of it."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.size import QUICK, turns

Timed = Callable[[], float]  # does its work and returns the seconds it took


def clock(call: Callable[[], object]) -> Timed:
    def timed() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return timed


class Work(NamedTuple):
    """Seconds of processor time of all cores and of this process with its ended children, and of
    the clock, each from a beginning of its own."""

    all_of_it: float
    own: float
    clock: float


def read_work() -> Work | None:
    """None but on Linux. What other machines of the same host take from this one counts, too."""
    file = Path("/proc/stat")
    if not file.exists():
        return None
    user, nice, system, _, _, hard, soft, stolen = map(int, file.read_text().split()[1:9])
    own = os.times()
    return Work((user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK"),
                sum(own[:4]), own.elapsed)


class Others:
    """The work of other processes since this was made."""

    def __init__(self) -> None:
        self._began = read_work()

    def cores(self) -> float | None:
        """How many cores it kept busy in the mean; None where the system does not say, or within
        the first second, as it counts in hundredths."""
        before, now = self._began, read_work()
        if before is None or now is None or now.clock - before.clock < 1:
            return None
        work = (now.all_of_it - before.all_of_it) - (now.own - before.own)
        return max(0.0, work) / (now.clock - before.clock)


def time_in_turn(
    calls: Sequence[Timed], rounds: int, *, block: int = 1, warm_up: int = 0, pause: float = 0.0,
    reduce: Callable[[Any], Any] = np.median,
) -> NDArray[np.float64]:
    """(rounds, calls) milliseconds: A B A B, after one round that is not counted.

    block: successive calls of one side, reduced to one figure, `warm_up` calls before them not
    counted; pause: seconds of sleep before each block. Threads of the side before spin for some
    milliseconds after their work and would take a core, and its data fills the caches: no user
    has two of them at work.
    """
    times = np.empty((1 + turns(rounds), len(calls)))
    for row in times:
        for k, call in enumerate(calls):
            time.sleep(pause)
            row[k] = reduce([call() for _ in range(warm_up + block)][warm_up:]) * 1e3
    return times[1:]


def noted(what: str, peer: str, times: NDArray[np.float64]) -> dict[str, Any]:
    """Of (rounds, 2) milliseconds of ours and the peer's: the medians, and how many times as fast
    ours is, the median of the rounds. what: was done, in a word or two."""
    ours, theirs = np.median(times, axis=0)
    low, ratio, high = (float(q) for q in np.quantile(times[:, 1] / times[:, 0], (0, 0.5, 1)))
    return {"what": what, "peer": peer, "ours_ms": float(ours), "peer_ms": float(theirs),
            "ratio_min_max": [low, high], "ratio": ratio}


def told(name: str, figure: dict[str, Any]) -> str:
    """What `noted` gives, in a line."""
    low, high = figure["ratio_min_max"]
    return (f"{name}: {figure['ours_ms']:.4g} ms, {figure['peer']} {figure['peer_ms']:.4g} ms,"
            f" {figure['ratio']:.3g} times as fast ({low:.3g} to {high:.3g})")


def record(benchmark: Any, what: str, peer: str, times: NDArray[np.float64]) -> float:
    """Note and print what `noted` tells; how many times as fast ours is."""
    figure = noted(what, peer, times)
    benchmark.extra_info |= figure
    print(f"\n{told(benchmark.name, figure)}")
    ratio: float = figure["ratio"]
    return ratio


def record_limit(benchmark: Any, by: str, limit_ms: float, ours_ms: float) -> float:
    """Note and print the share of the time that the machine allows; by: what binds."""
    share = limit_ms / ours_ms
    benchmark.extra_info["limit"] = {"by": by, "ms": limit_ms, "share": share}
    print(f"{benchmark.name}: {share:.0%} of what {by} allows ({limit_ms:.3g} ms)")
    return share


def repeat(benchmark: Any, call: Callable[[], object], rounds: int, warm_up: int = 3) -> None:
    """Let pytest-benchmark time the call, for its own tables and the histograms."""
    benchmark.pedantic(call, rounds=turns(rounds), warmup_rounds=0 if QUICK else warm_up)
