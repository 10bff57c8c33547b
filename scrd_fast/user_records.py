"""What this user did before, line by line, in files of the user's state folder."""

import os
from pathlib import Path

from scrd_fast.errors import OutputError

BUILT_PLANS = "built-plans"  # SHA-256 of the compiled plans that this user built
JUDGED_ENGINES = "judged-engines"  # what reproduced its golden images, on which GPU


def _path(record: str) -> Path:
    root = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return root / "scrd_fast" / record


def record_line(record: str, line: str) -> None:
    """Add a line without spaces to a record; only this user may read it. Raises OutputError."""
    try:
        path = _path(record)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "a") as file:  # one short write: lines of two processes do not mix
            file.write(f"{line}\n")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise OutputError(f"this user's record of {record.replace('-', ' ')} cannot be written"
                          f" ({error}); set XDG_STATE_HOME to a folder that can") from error


def is_recorded(record: str, line: str) -> bool:
    """Whether this user's record has this line."""
    try:
        return line in _path(record).read_text().split()
    except (OSError, RuntimeError):  # no record that can be read: nothing is known
        return False
