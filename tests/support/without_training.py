"""python -m tests.support.without_training ARGUMENTS: the command line as it is where only the base
install is: what trains and builds cannot be imported, installed or not."""

import os
import subprocess
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from scrd_fast.errors import TRAIN_PACKAGES

ROOT = Path(__file__).parents[2]


class _WithoutTraining(MetaPathFinder):
    """A finder that has not found what another would have."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in TRAIN_PACKAGES:
            return None
        return self.finder.find_spec(name, path, target)

    def find_distributions(self, *context: Any) -> Any:
        """Versions of packages, which some ask for about themselves."""
        return getattr(self.finder, "find_distributions", lambda *_: ())(*context)


def forbid_training() -> None:
    """From now on, in this process."""
    loaded = sorted(set(TRAIN_PACKAGES) & set(sys.modules))
    assert not loaded, f"already imported: {loaded}"
    sys.meta_path[:] = map(_WithoutTraining, sys.meta_path)


def base_only(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with the base install alone."""
    command = [sys.executable, "-m", "tests.support.without_training", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)


if __name__ == "__main__":
    forbid_training()
    from scrd_fast.cli import main

    main()
