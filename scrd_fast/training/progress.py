"""The progress bar of training runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scrd_fast.torch_state import python_generator_kept

Report = Callable[..., None]


@contextmanager
def training_progress(title: str, total: int, *, enabled: bool = True) -> Iterator[Report]:
    """Yield report(done, loss=..., images_per_s=..., **more), shown as one rich progress bar."""
    with python_generator_kept():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"), console=Console(stderr=True), disable=not enabled,
    )
    with bar:
        task = bar.add_task(title, total=total, figures="")

        def report(done: int, **figures: Any) -> None:
            shown = "  ".join(
                f"{name.replace('_per_', '/')} {value:.3g}" if isinstance(value, float)
                else f"{name} {value}" for name, value in figures.items()
            )
            bar.update(task, completed=done, figures=shown)

        yield report
