"""What TensorRT for RTX has beyond TensorRT: targets, reasons, and a cache of what it compiles.

A plan of its is code for several generations of GPUs in an intermediate form, which is compiled
for the GPU at hand where it runs.
"""

import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scrd_fast.errors import EngineBuildError, OutputError
from scrd_fast.files import atomic_write

_REASONS = {
    "CUDA_ERROR": "CUDA does not work here; `nvidia-smi` shows whether the driver does",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory",
    "MALFORMED_ENGINE": "it is damaged",
    "OLD_CUDA_DRIVER": "the driver is too old; install a newer one",
    "OLD_CUDA_RUNTIME": "the CUDA libraries are too old",
    "UNSUPPORTED_CC": "it was not compiled for a GPU like this one",
    "VERSION_MISMATCH": "another version of the library compiled it",
}


def set_targets(trt: Any, config: Any, targets: Sequence[str]) -> None:
    """Compile for these GPUs, by name; raises EngineBuildError where one is refused."""
    config.num_compute_capabilities = len(targets)
    for i, name in enumerate(targets):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), i):
            raise EngineBuildError(f"TensorRT for RTX does not compile for {name}")


def why_invalid(trt: Any, runtime: Any, plan: bytes) -> str | None:
    """Why a plan cannot run here, as far as its beginning tells; None where it can, or may."""
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return None
    found = [text for name, text in _REASONS.items()
             if int(diagnostics) & int(getattr(trt.EngineInvalidityDiagnostics, name))]
    return " and ".join(found) or f"it is not valid here (diagnostics {int(diagnostics)})"


class RuntimeCache:
    """How contexts are made, with what was compiled for this GPU before.

    The file is code that runs: it is read only from a folder that nobody else may write into.
    """

    def __init__(self, trt: Any, engine: Any, path: Path | None) -> None:
        """path: of the file; None: nothing is kept."""
        self._path = path
        self.config = engine.create_runtime_config()
        # At once, and not beside the first batches: what compiles meanwhile cannot be captured.
        self.config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER)
        self.config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)
        self._cache = self.config.create_runtime_cache()
        self._before = b""
        if path is not None and (data := read_own(path)):
            # What another GPU, driver or release compiled is refused, and compiled again.
            self._before = data if self._cache.deserialize(data) else b""
        self.config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write what was compiled since; a failure is a warning, as it only costs time."""
        if self._path is None or (data := bytes(self._cache.serialize())) == self._before:
            return
        try:
            with atomic_write(self._path) as temporary:
                temporary.write_bytes(data)
            self._path.chmod(0o600)
        except (OSError, OutputError) as error:
            warnings.warn(f"TensorRT for RTX: its cache is not kept: {error}", stacklevel=2)


def read_own(path: Path) -> bytes:
    """The content of a file of code that only this user can have written; else nothing, with a
    warning where it is there."""
    try:
        for place in (path.parent, path):
            found = place.lstat()
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or (
                    stat.S_ISLNK(found.st_mode)):
                warnings.warn(f"{place}: not read, as others than this user may have written it;"
                              " remove it, and it is made again", stacklevel=3)
                return b""
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        warnings.warn(f"{path}: cannot be read: {error.strerror}", stacklevel=3)
        return b""
