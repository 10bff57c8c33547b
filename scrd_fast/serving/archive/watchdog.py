"""A watchdog that says what is waited for when nothing moves."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

from scrd_fast.data.decode.read import read_file
from scrd_fast.engine.engine import Pending
from scrd_fast.engine.load import open_engine
from scrd_fast.progress import duration, tell
from scrd_fast.serving.archive.manifest import Manifest, read_manifest
from scrd_fast.serving.archive.output import Output
from scrd_fast.serving.archive.places import copy_file

SECONDS = 60.0  # without a step, until the first line
_NAMED = 3  # files of a kind that a line names

# What takes long, by the function that does it, and which of its variables says on what.
_STEPS: Mapping[CodeType, tuple[str, str]] = {
    Pending.result.__code__: ("the engine", ""),
    read_file.__code__: ("reading", "path"),
    copy_file.__code__: ("fetching", "url"),
    Output.write_rows.__code__: ("writing", "name"),
    Output.read_rows.__code__: ("reading", "name"),
    read_manifest.__code__: ("reading", "place"),
    Manifest.read.__code__: ("reading the manifest", ""),
    open_engine.__code__: ("loading", "path"),
}


def name_steps() -> str:
    """What the threads of this process are waiting for, of the steps that may take long."""
    found: dict[str, list[str]] = {}
    for frame in sys._current_frames().values():
        at: Any = frame
        while at is not None:
            if at.f_code in _STEPS:
                step, variable = _STEPS[at.f_code]
                found.setdefault(step, []).append(str(at.f_locals.get(variable, "")))
            at = at.f_back
    return ", ".join(
        " ".join([step, *filter(None, [" and ".join(sorted(names)[:_NAMED])])])
        + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        for step, names in sorted(found.items())) or "nothing that it knows of"


class Watchdog:
    """Tells on standard error what is waited for when nothing has moved for a while; again after
    twice as long, and so on. Runs while its `with` block does."""

    def __init__(self, what: Callable[[], str] = name_steps, seconds: float = SECONDS) -> None:
        self.what = what
        self._seconds = seconds
        self._moved = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def move(self) -> None:
        """A step was done."""
        self._moved = time.monotonic()

    def _run(self) -> None:
        pause, moved = self._seconds, self._moved
        while not self._ended.wait(max(self._moved + pause - time.monotonic(), 0.01)):
            if self._moved != moved:
                pause, moved = self._seconds, self._moved
            still = time.monotonic() - moved
            if still >= pause:
                tell(f"nothing moved for {duration(still)}; waits for: {self.what()}")
                pause *= 2
