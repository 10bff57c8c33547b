"""How long work tells how far it is: one interface, and one way to show it.

A step of work calls `progress(done, total, what, **figures)`. On a terminal that is a bar; anywhere
else a line on standard error after two seconds, and then every ten, with the time left. What has
no steps to count is told of after ten.
"""

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# done, total, what; and figures by name. A total of 0: nothing that could be counted.
Progress = Callable[..., None]

FIRST_LINE, NEXT_LINE = 2.0, 10.0  # seconds


def silent(done: int, total: int, what: str, **figures: Any) -> None:
    """Tell nothing."""


def tell(text: str, *, enabled: bool = True) -> None:
    """Print a line on standard error."""
    if enabled and sys.stderr is not None:
        print(text, file=sys.stderr)


@contextmanager
def show_progress(what: str = "", *, enabled: bool = True) -> Iterator[Progress]:
    """Yield a `Progress` that is shown on standard error while the block runs.

    what: shown from the start on, before the first call. Threads may call it.
    """
    if not enabled:
        yield silent
    elif sys.stderr is not None and sys.stderr.isatty():
        with _bar(what) as report:
            yield report
    else:
        with _Lines(sys.stderr, what) as lines:
            yield lines.report


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    before = random.getstate()
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    random.setstate(before)  # importing rich draws from the caller's generator
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
               MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[figures]}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, figures="")
        shown = what

        def report(done: int, total: int, what: str, **figures: Any) -> None:
            nonlocal shown
            if what != shown:  # the time left is that of this work alone
                bar.reset(task, total=total or None, description=what)
                shown = what
            bar.update(task, completed=done, total=total or None, figures=_text(figures))

        yield report


class _Lines:
    """Lines of text from a thread of their own, so that a long step is told of, too."""

    def __init__(self, out: TextIO | None, what: str) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._state: tuple[int, int, str, dict[str, Any]] = (0, 0, what, {})
        self._began, self._first = time.monotonic(), 0
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> "_Lines":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def report(self, done: int, total: int, what: str, **figures: Any) -> None:
        with self._lock:
            if what != self._state[2]:
                self._began, self._first = time.monotonic(), done
            self._state = done, total, what, figures

    def _run(self) -> None:
        wait = FIRST_LINE
        while not self._ended.wait(wait):
            wait = NEXT_LINE
            line = self._line()
            try:
                if line and self._out is not None:
                    self._out.write(f"{line}\n")
                    self._out.flush()
            except (OSError, ValueError):  # nobody reads it any more: the work goes on
                return

    def _line(self) -> str:
        with self._lock:
            done, total, what, figures = self._state
            seconds, first = time.monotonic() - self._began, self._first
        if not what or (not total and seconds < NEXT_LINE):
            return ""
        parts = [what]
        if total:
            parts[0] += f" {done} of {total}"
        if total > done > first:
            parts.append(f"{duration(seconds * (total - done) / (done - first))} left")
        elif done <= first:
            parts.append(f"{duration(seconds)} so far")
        return ", ".join([*parts, *filter(None, [_text(figures)])])


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _text(figures: dict[str, Any]) -> str:
    return "  ".join(f"{name.replace('_per_', '/')} {value:.3g}" if isinstance(value, float)
                     else f"{name} {value}" for name, value in figures.items())
