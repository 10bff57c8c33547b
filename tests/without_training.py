"""python -m tests.without_training ARGUMENTS: the command line as it is where only the base install
is: what trains and builds cannot be imported, installed or not."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from scrd_fast.errors import TRAIN_PACKAGES


class _WithoutTraining(MetaPathFinder):
    """A finder that has not found what another would have."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in TRAIN_PACKAGES:
            return None
        return self.finder.find_spec(name, path, target)


def forbid_training() -> None:
    """From now on, in this process."""
    loaded = sorted(set(TRAIN_PACKAGES) & set(sys.modules))
    assert not loaded, f"already imported: {loaded}"
    sys.meta_path[:] = map(_WithoutTraining, sys.meta_path)


if __name__ == "__main__":
    forbid_training()
    from scrd_fast.cli import main

    main()
