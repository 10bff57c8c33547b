"""The engine built or loaded last in this process, for `scrd_fast.score`."""

from typing import TYPE_CHECKING, Any

from scrd_fast.errors import InputError

if TYPE_CHECKING:
    from scrd_fast.engine.engine import Engine, Result

_engine: "Engine | None" = None


def use(engine: "Engine") -> "Engine":
    """Make `engine` the current one."""
    global _engine
    _engine = engine
    return engine


def forget(engine: "Engine") -> None:
    """Let go of `engine`, which is being closed."""
    global _engine
    if _engine is engine:
        _engine = None


def score(batch: Any, *, maps: bool = True) -> "Result":
    """Score a batch with the engine built or loaded last in this process (see Engine.score).

    Raises InputError where there is none yet.
    """
    if _engine is None:
        raise InputError(
            "score: expected an engine built or loaded in this process, got none;"
            " call scrd_fast.build_engine(checkpoint) or scrd_fast.load_engine(path) first"
        )
    return _engine.score(batch, maps=maps)
