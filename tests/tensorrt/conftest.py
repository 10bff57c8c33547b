"""The real Python bindings of TensorRT, without TensorRT.

The bindings are on PyPI; the libraries that they load are not. Empty libraries of the same names
let them be imported, which shows every class, signature and enum member. Nothing in them runs.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

VERSIONS = ("10.16.1.11", "11.4.0.106")
CACHE = ROOT / "build" / "tensorrt"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
# What the bindings refer to as they are loaded; none of it is called.
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry",
    "initLibNvInferPlugins")


def _run(command: list[str], reason: str, **options: str) -> None:
    """Run a command, or skip the test for this reason and what the command says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        pytest.skip(f"{reason}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")


def _make_libraries(folder: Path, major: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("the bindings of TensorRT need a C compiler for stand-in libraries")
    source = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS)
    for name in LIBRARIES:
        file = f"lib{name}.so.{major}"
        _run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", str(folder / file),
              "-x", "c", "-"], "a stand-in for TensorRT's libraries cannot be compiled",
             input=source if name == LIBRARIES[0] else "")


def _install(folder: Path, version: str) -> None:
    """Bindings and stand-ins in a folder, which appears when it is complete; 6 MB."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _make_libraries(partial, version.partition(".")[0])
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
          "--no-deps", "--only-binary=:all:", "--target", str(partial),
          f"tensorrt-cu13-bindings=={version}"],
         f"the bindings of TensorRT {version} cannot be downloaded")
    partial.rename(folder)


@pytest.fixture(scope="session", params=VERSIONS)
def bindings(request: pytest.FixtureRequest) -> Path:
    """A folder for `check_bindings.load`: bindings of one version and stand-in libraries."""
    if sys.platform != "linux":
        pytest.skip("the stand-in libraries are for Linux")
    folder = CACHE / f"{request.param}-py{sys.version_info[0]}{sys.version_info[1]}"
    if not folder.exists():
        _install(folder, request.param)
    return folder
