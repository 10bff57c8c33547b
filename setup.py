"""Builds the C++ extensions; everything else about the package is in pyproject.toml."""

import os
from collections.abc import Iterator
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

# No -march: each kernel is compiled for several instruction sets and chosen at run time.
FLAGS = ["-O3", "-Icsrc/include", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi", "-pthread"]
HEADERS = [*glob("csrc/**/*.hpp", recursive=True), *glob("csrc/src/*.inl")]


def extension(name: str, sources: list[str], **options: list[str]) -> Pybind11Extension:
    return Pybind11Extension(
        f"scrd_fast.{name}", sorted(sources), depends=HEADERS, cxx_std=17,
        extra_link_args=["-pthread"], **{"extra_compile_args": FLAGS, **options},
    )


def extensions() -> Iterator[Pybind11Extension]:
    yield extension("_native", [*glob("csrc/src/*.cpp"), *glob("csrc/python/*.cpp")])
    openvino = find_spec("openvino")
    if openvino is None or openvino.origin is None:
        print("OpenVINO is not installed: building without its runner")
        return
    # Headers and libraries come in OpenVINO's wheel. No run path: backends/openvino.py loads
    # the library before the module.
    root = Path(openvino.origin).parent
    libraries = sorted((root / "libs").glob("libopenvino.so*"))
    if not libraries:
        print("OpenVINO's wheel has no libopenvino.so here: building without its runner")
        return
    yield extension("_openvino", glob("csrc/openvino/*.cpp"),
                    extra_objects=[str(libraries[0])],
                    extra_compile_args=[*FLAGS, "-isystem", str(root / "include")])


ParallelCompile(default=os.cpu_count() or 1).install()
setup(ext_modules=list(extensions()))
