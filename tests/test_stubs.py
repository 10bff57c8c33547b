"""The stubs of the extension modules against the modules themselves.

mypy's stubtest cannot do it: it finds no signature in what pybind11 makes, so it compares names
only. pybind11 writes the signature into the first line of the docstring, where it is read here.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from scrd_fast.backends.registry import backend_of

PACKAGE = Path(__file__).parent.parent / "scrd_fast"
STUBS = sorted(path.stem for path in PACKAGE.glob("*.pyi"))

if backend_of("openvino").missing() is None:
    backend_of("openvino").precisions()  # loads the library that _openvino needs

# A name -> how it may be called; None for what is not called.
Signatures = dict[str, str | None]


def public(name: str) -> bool:
    return not name.startswith("_") or name == "__init__"


def call_of(arguments: ast.arguments) -> str:
    """The parameters without their types, "..." for every default: "self, size, *, fast=..."."""
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
        argument.annotation = None
    arguments.defaults = [ast.Constant(...) for _ in arguments.defaults]
    arguments.kw_defaults = [d and ast.Constant(...) for d in arguments.kw_defaults]
    return ast.unparse(arguments)


def of_stub(body: list[ast.stmt], prefix: str = "") -> Signatures:
    found: Signatures = {}
    for node in body:
        if isinstance(node, ast.ClassDef) and public(node.name):
            found |= {prefix + node.name: None, **of_stub(node.body, f"{prefix}{node.name}.")}
        elif isinstance(node, ast.FunctionDef) and public(node.name):
            is_property = any(ast.unparse(d) == "property" for d in node.decorator_list)
            found[prefix + node.name] = None if is_property else call_of(node.args)
        elif isinstance(node, ast.AnnAssign) and public(ast.unparse(node.target)):
            found[prefix + ast.unparse(node.target)] = None
    return found


def of_module(members: dict[str, object], prefix: str = "") -> Signatures:
    found: Signatures = {}
    for name, value in members.items():
        if not public(name):
            continue
        found[prefix + name] = None
        if inspect.isclass(value):
            found |= of_module(dict(vars(value)), f"{prefix}{name}.")
        elif callable(value):
            first = (value.__doc__ or "").partition("\n")[0]
            if first == (object.__init__.__doc__ or "").partition("\n")[0]:
                del found[prefix + name]  # a class that Python cannot make has Python's own text
                continue
            source = re.sub(r"= <[^>]*>", "= ...", first)  # a default that Python cannot read
            function = ast.parse(f"def {source}: ...").body[0]
            assert isinstance(function, ast.FunctionDef)
            found[prefix + name] = call_of(function.args)
    return found


@pytest.mark.parametrize("name", STUBS)
def test_stub_is_the_module(name):
    module = importlib.import_module(f"scrd_fast.{name}")
    stub = of_stub(ast.parse((PACKAGE / f"{name}.pyi").read_text()).body)
    assert stub == of_module(vars(module))


def test_the_extensions_have_stubs():
    assert STUBS == ["_native", "_openvino"]
