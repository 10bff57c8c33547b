"""cuDNN's own library on the graphs of ours, without a GPU: it plans from a GPU's properties.

NVIDIA's libraries need the driver's, libcuda, where they are loaded; where there is no driver a
stand-in says of every call that there is no device.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from scrd_fast.precisions import QUANTISED
from tests.conftest import ROOT

# What cuDNN looks for in libcuda as it is loaded, and as it plans.
SYMBOLS = (
    "cuCtxGetCurrent", "cuCtxGetLimit", "cuCtxPopCurrent", "cuCtxPushCurrent", "cuDeviceGet",
    "cuDeviceGetCount", "cuGetErrorName", "cuGetErrorString", "cuKernelGetAttribute",
    "cuKernelGetFunction", "cuKernelSetAttribute", "cuLaunchCooperativeKernel", "cuLaunchKernel",
    "cuLaunchKernelEx", "cuLibraryGetKernel", "cuLibraryLoadData", "cuLibraryLoadFromFile",
    "cuLibraryUnload", "cuLinkAddData", "cuLinkComplete", "cuLinkCreate", "cuLinkDestroy",
    "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload",
    "cuOccupancyMaxPotentialClusterSize", "cuStreamGetCtx", "cuTensorMapEncodeIm2col",
    "cuTensorMapEncodeTiled")
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def _folder_of(library: str) -> Path | None:
    """Where a wheel of NVIDIA's has a library."""
    spec = find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(place).glob(f"*/lib/{library}.so.*"):
            return file.parent
    return None


FOLDERS = [_folder_of(library) for library in ("libcudnn", "libcublasLt", "libnvrtc")]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not find_spec("cudnn") or None in FOLDERS,
    reason="cuDNN is not installed: pip install -e '.[cudnn]' nvidia-cudnn-cu13 nvidia-cublas"
           " nvidia-cuda-nvrtc")]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library path on which cuDNN finds what it loads."""
    folders = [str(folder) for folder in FOLDERS]
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            pytest.skip("without NVIDIA's driver a C compiler is needed, for a stand-in of libcuda")
        folder = tmp_path_factory.mktemp("libcuda")
        source = "".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in SYMBOLS) + (
            "int cuDriverGetVersion(int *version) { *version = 13000; return 0; }\n")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o",
             str(folder / "libcuda.so.1"), "-x", "c", "-"], input=source, text=True, check=True)
        folders.append(str(folder))
    return os.pathsep.join(folders)


def run(libraries: str, *check: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.convolutions.check_cudnn", *check], cwd=ROOT,
        env=os.environ | {"LD_LIBRARY_PATH": libraries}, capture_output=True, text=True,
        check=False, timeout=300)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("gpu", "precision"), [
    ("H100", "fp16"), ("H100", "bf16"), ("H100", "int8"), ("H100", "fp8"), ("A100", "fp16"),
    ("A100", "int8"), ("RTX 4090", "fp16"), ("RTX 4090", "int8"), ("RTX 4090", "fp8")])
def test_every_convolution_has_plans_that_compile_again(libraries, gpu, precision):
    """By cuDNN's heuristics for that GPU: convolution, bias, residual sum and ReLU in one; and of
    8-bit numbers, with the way back to them."""
    found = run(libraries, "plans", gpu, precision)
    assert found["layers"] > 50
    assert (found["of 8 bits"] > 40) == (precision in QUANTISED)
    assert found["compiled"] >= found["layers"] - found["of 8 bits"]


def test_what_cudnn_does_not_have_is_an_error(libraries):
    told = run(libraries, "refused")
    assert len(told) == 2
    assert all(each.startswith("cuDNN does not run Layer(images=1, ") for each in told)


def test_plans_that_sum_otherwise_are_refused(libraries):
    """By what cuDNN notes of a plan; here the first of a convolution, by a note that it has."""
    assert run(libraries, "barred") == ["compiled", "refused"]
