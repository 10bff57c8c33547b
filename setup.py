"""Builds the C++ extensions; everything else about the package is in pyproject.toml."""

import os
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

# No -march: each kernel is compiled for several instruction sets and chosen at run time.
FLAGS = ["-O3", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi", "-pthread"]
HEADERS = [*glob("csrc/*.hpp"), *glob("csrc/*.inl"), *glob("csrc/python/*.hpp")]


def extension(name: str, sources: list[str]) -> Pybind11Extension:
    return Pybind11Extension(
        f"scrd_fast.{name}", sorted(sources), include_dirs=["csrc"], depends=HEADERS,
        cxx_std=17, extra_compile_args=FLAGS, extra_link_args=["-pthread"],
    )


ParallelCompile(default=os.cpu_count() or 1).install()
setup(ext_modules=[extension("_native", [*glob("csrc/*.cpp"), *glob("csrc/python/*.cpp")])])
