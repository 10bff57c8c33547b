"""How the steps of a build tell how far they are."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, total, what


def silent(done: int, total: int, what: str) -> None:
    """Tell nothing."""
