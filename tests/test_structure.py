"""One floor above the other: no module imports from a floor above its own, no two folders import
each other. docs/architecture.md shows the floors."""

import ast
from pathlib import Path

import pytest

import scrd_fast
from scrd_fast.backends.registry import BACKENDS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "scrd_fast"

# From the ground up. A name is a folder of scrd_fast, or a module beside them.
FLOORS = (
    ("errors", "spec", "records", "precisions", "files", "progress", "torch_state", "machine",
     "user_records"),
    ("reference",),
    ("kernels",),
    ("ops",),
    ("data",),
    ("metrics",),
    ("model",),
    ("training",),
    ("graph",),
    ("backends",),
    ("engine",),
    ("timing",),
    ("building",),
    ("evaluation",),
    ("report",),
    ("outputs",),
    ("serving",),
    ("demo",),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = sorted(str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """The folder of a module given by its path inside the package, else the module itself."""
    return module.removesuffix(".py").split("/")[0]


def imported(module: str) -> set[str]:
    """The rooms that a module imports from, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            room = rest.split(".")[0]
            if top == "scrd_fast" and ((PACKAGE / room).is_dir()
                                       or (PACKAGE / f"{room}.py").exists()):
                found.add(room)
    return found - {""}


def test_every_room_has_a_floor():
    assert {room_of(module) for module in MODULES} == set(FLOOR_OF)


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_runs_up(module):
    own = room_of(module)
    above = {room for room in imported(module) if FLOOR_OF[room] > FLOOR_OF[own]}
    assert not above, f"{module} imports from {sorted(above)}, which are above {own}"


def test_no_two_rooms_import_each_other():
    arrows = {(room_of(module), room) for module in MODULES for room in imported(module)
              if room != room_of(module)}
    assert not {(a, b) for a, b in arrows if (b, a) in arrows}


def test_no_module_above_the_backends_asks_for_one_by_name():
    outside = [module for module in MODULES if room_of(module) != "backends"]
    named = {(module, node.value) for module in outside
             for node in ast.walk(ast.parse((PACKAGE / module).read_text()))
             if isinstance(node, ast.Constant) and node.value in BACKENDS}
    assert not named
    own = {f"backends/{name}{end}" for name in BACKENDS for end in (".py", "/__init__.py")}
    assert len(own & set(MODULES)) == len(BACKENDS)


def test_public_names_are_where_they_are_said_to_be():
    assert set(scrd_fast.__all__) == set(scrd_fast._HOMES)
    for name in scrd_fast.__all__:
        assert getattr(scrd_fast, name) is not None
