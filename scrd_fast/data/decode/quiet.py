"""Silence of the decoding libraries: what they have to say is for our errors to tell.

Their warnings may quote what a file says, a patient's name among it.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

# By whom a warning is given; libraries pass some of theirs up to the module that called them.
_MODULES = r"(pydicom|nibabel|imagecodecs|highdicom|scrd_fast\.(data\.decode|outputs))\b"
_LOGGERS = ("pydicom", "nibabel", "nibabel.global", "imagecodecs", "highdicom")

_lock, _inside = Lock(), 0
_filter: list[Any] = []
_levels: dict[str, int] = {}


@contextmanager
def silent_libraries() -> Iterator[None]:
    """No warning or log of the decoding libraries while any thread is in here.

    Filters and levels are the process's: the first thread in sets them, the last one out
    puts them back. Other modules' warnings and logs are left alone.
    """
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            _set()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _put_back()


def _set() -> None:
    import re

    # Not by warnings.filterwarnings, nor catch_warnings: both forget which warnings were shown,
    # and everybody's would be shown anew after every file.
    _filter[:] = [("ignore", None, Warning, re.compile(_MODULES), 0)]
    warnings.filters.insert(0, _filter[0])  # type: ignore[attr-defined]
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        _levels[name] = logger.level
        logger.setLevel(logging.CRITICAL + 1)


def _put_back() -> None:
    # Somebody's catch_warnings may have put the old filters back already.
    if _filter[0] in warnings.filters:
        warnings.filters.remove(_filter[0])  # type: ignore[attr-defined]
    for name, level in _levels.items():
        logging.getLogger(name).setLevel(level)


def one_line(error: BaseException) -> str:
    """What an error of a library says, on one line of at most 200 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
