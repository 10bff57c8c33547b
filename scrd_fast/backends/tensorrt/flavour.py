"""The two libraries that are called TensorRT, and what each can do. Loads neither.

NVIDIA's TensorRT compiles for the GPU at hand. TensorRT for RTX has the same interface, compiles
for a list of generations of GPUs without having one, and finishes the work where the plan runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from scrd_fast.backends.tensorrt.plan import TensorRtOptions, capability_of
from scrd_fast.errors import BackendUnavailable, expect

FLOAT8_FROM = (8, 9)  # compute capability
BF16_FROM = (8, 0)


@dataclass(frozen=True, eq=False)
class Flavour:
    """One of the two.

    backend: name of the backend; title: of the product; module: its Python bindings; least: the
    first version that is known to do; install: what brings it. refuses: options of a plan that it
    does not have, by name. timing_cache: whether measurements of builds can be kept; runtime_cache:
    whether what it compiles at run time can be. targets: the GPUs that it compiles for without
    having one, by name; none: for the GPU at hand alone. cannot: why not for others, by name.
    """

    backend: str
    title: str
    module: str
    least: tuple[int, int]
    install: str
    refuses: tuple[str, ...]
    timing_cache: bool
    runtime_cache: bool
    targets: Mapping[str, tuple[int, int]]
    cannot: Mapping[str, str]

    def missing(self) -> str | None:
        """Why it cannot be used here, and what to do; None where it can."""
        if not find_spec(self.module):
            return f"{self.title} is not installed; {self.install}"
        try:
            version = self.version()
        except (ImportError, OSError) as error:  # its libraries are packages of their own
            return f"{self.title} cannot be imported ({error})"
        if tuple(int(part) for part in version.split(".")[:2]) < self.least:
            return (f"{self.title} {'.'.join(map(str, self.least))} or later is needed, {version}"
                    " is installed")
        return None

    def load(self) -> ModuleType:
        """Its Python bindings."""
        return import_module(self.module)

    def version(self) -> str:
        """Of the library that is installed."""
        return str(self.load().__version__)

    def check_options(self, options: TensorRtOptions) -> None:
        """Raise BackendUnavailable for an option that only the other library has."""
        default = TensorRtOptions()
        for name in self.refuses:
            value = getattr(options, name)
            if value != getattr(default, name):
                raise BackendUnavailable(
                    f"tensorrt.{name}: {self.title} has no plans with {value!r}; leave it at"
                    f" {getattr(default, name)!r}, or build with backend"
                    f" {TENSORRT.backend!r} on the GPU that will run it")

    def check_targets(self, targets: Sequence[str], precision: str) -> None:
        """Raise InputError unless `targets` are names of GPUs that it compiles for, each once, and
        BackendUnavailable where one of them does not compute in a precision."""
        for name in targets:
            if name in self.cannot:
                raise BackendUnavailable(f"target {name!r}: {self.cannot[name]}")
        known = tuple(self.targets)
        good = (not isinstance(targets, str) and 0 < len(set(targets)) == len(targets)
                and set(targets) <= set(known))
        expect(good, "targets", f"one or more of {known}, each once", targets)
        old = [name for name in targets if self.targets[name] < FLOAT8_FROM]
        if precision == "fp8" and old:
            raise BackendUnavailable(
                f"precision 'fp8': compute capability {FLOAT8_FROM[0]}.{FLOAT8_FROM[1]} or later is"
                f" needed, target {old[0]} is below; leave it out, or choose another precision"
                " (fp16 and int8 run on all targets)")


TENSORRT = Flavour(
    backend="tensorrt", title="TensorRT", module="tensorrt", least=(10, 13),
    install="pip install tensorrt-cu13, or -cu12 for a PyTorch of CUDA 12",
    refuses=(), timing_cache=True, runtime_cache=False, targets={},
    cannot={})

# Stripped plans end its build in an error of its compiler, version-compatible ones want a library
# that it does not come with, plugins are not in its interface, and the level of hardware
# compatibility is ignored: a list of targets says what that would.
TENSORRT_RTX = Flavour(
    backend="tensorrt_rtx", title="TensorRT for RTX", module="tensorrt_rtx_bindings", least=(1, 7),
    install="pip install 'scrd-fast[tensorrt-rtx]'",
    refuses=("version_compatible", "hardware_compatible", "stripped", "tail"),
    timing_cache=False, runtime_cache=True,
    targets={name: capability_of(name) for name in ("sm80", "sm86", "sm89", "sm120", "sm121")},
    cannot={
        "sm75": "TensorRT for RTX multiplies no float32 matrices on Turing, by which the anomaly"
                " map is resized; an engine with backend 'torch_cuda' can be built on such a GPU",
        "sm90": "TensorRT for RTX does not compile for Hopper; an engine with backend 'tensorrt' or"
                " 'torch_cuda' can be built on such a GPU"})
