"""A TensorRT plan as the rest of the engine sees it: its options, what it is tied to, and trust.

Needs no TensorRT. A plan is tied to the TensorRT release and the GPU it was built for, and it is
code (a version_compatible one brings code for the CPU, too): the digests of the plans that a user
builds are kept, and another one is refused unless the caller says that it can be trusted.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scrd_fast.backends.backend import build_again
from scrd_fast.errors import EngineFileError, expect
from scrd_fast.machine import Gpu
from scrd_fast.user_records import BUILT_PLANS, is_recorded

PLAN = "tensorrt.plan"


@dataclass(frozen=True)
class TensorRtOptions:
    """How a plan is built; each field's "help" says what it is.

    The tail "plugin" is compiled for one generation of GPUs, so not with hardware_compatible.
    """

    workspace_gb: float | None = field(default=None, metadata={
        "help": "The most scratch memory of a layer; else all of the GPU's."})
    level: int = field(default=3, metadata={
        "help": "0 builds fast, 5 builds the fastest plan."})
    version_compatible: bool = field(default=False, metadata={
        "help": "The plan also runs on later minor versions of TensorRT."})
    hardware_compatible: bool = field(default=False, metadata={
        "help": "The plan also runs on other GPUs, from Ampere on."})
    stripped: bool = field(default=False, metadata={
        "help": "A plan without weights; loading puts them back from the portable graph."})
    tail: str = field(default="onnx", metadata={
        "help": "onnx, or plugin for the distances by our own kernel inside the plan."})

    def __post_init__(self) -> None:
        good = self.workspace_gb is None or 0 < self.workspace_gb < math.inf
        expect(good, "tensorrt.workspace_gb", "None or a number above 0", self.workspace_gb)
        expect(type(self.level) is int and self.level in range(6), "tensorrt.level",
               "an integer from 0 to 5", self.level)
        for name in ("version_compatible", "hardware_compatible", "stripped"):
            expect(type(getattr(self, name)) is bool, f"tensorrt.{name}", "True or False",
                   getattr(self, name))
        expect(self.tail in ("onnx", "plugin"), "tensorrt.tail", "'onnx' or 'plugin'", self.tail)
        expect(not (self.hardware_compatible and self.tail == "plugin"), "tensorrt.tail",
               "'onnx' with hardware_compatible", self.tail)


def capability_of(target: str) -> tuple[int, int]:
    """The compute capability that a name such as "sm86" stands for."""
    major, minor = divmod(int(target.removeprefix("sm")), 10)
    return major, minor


def target_of(capability: tuple[int, int]) -> str:
    """The other way round."""
    return f"sm{capability[0]}{capability[1]}"


@dataclass(frozen=True)
class PlanTies:
    """What a plan is tied to besides the GPU: TensorRT's version, and how it was built; targets:
    the GPUs that it was compiled for, by name, where it is not the one at hand; driver: its version
    there, for whoever reads the manifest."""

    tensorrt: str
    driver: str | None
    options: TensorRtOptions
    targets: tuple[str, ...] = ()

    @staticmethod
    def here(
        version: str, options: TensorRtOptions, targets: Sequence[str] = ()
    ) -> "PlanTies":
        """Of a plan that TensorRT of that version builds on this machine."""
        driver = Path("/proc/driver/nvidia/version")
        found = re.search(r"\d+\.\d+(\.\d+)?", driver.read_text()) if driver.exists() else None
        return PlanTies(version, found.group() if found else None, options, tuple(targets))


def plan_differences(
    gpu: Gpu | None, plan: PlanTies, version: str, capability: tuple[int, int]
) -> list[str]:
    """How this machine differs from the one that a plan was built for, as far as it matters.

    gpu, plan: of the engine file; version: of the TensorRT here; capability: of the GPU here.
    """
    built, options = plan.tensorrt, plan.options
    differences = []
    ours, theirs = (tuple(int(part) for part in v.split(".")[:2]) for v in (version, built))
    later = options.version_compatible and ours[0] == theirs[0] and ours >= theirs
    if version != built and not later:
        differences.append(f"it was built by TensorRT {built}, this is {version}")
    if plan.targets:
        if target_of(capability) not in plan.targets:
            differences.append(f"it was built for {', '.join(plan.targets)}, this GPU is"
                               f" {target_of(capability)}")
        return differences
    assert gpu is not None, "check_plan asked for it"
    major, minor = gpu.compute_capability
    anywhere = options.hardware_compatible and min(capability, (major, minor)) >= (8, 0)
    if capability != (major, minor) and not anywhere:
        differences.append(f"it was built for compute capability {major}.{minor}"
                           f" ({gpu.name}), this GPU has {capability[0]}.{capability[1]}")
    return differences


def check_plan(
    path: str | Path, gpu: Gpu | None, plan: PlanTies | None, digests: Mapping[str, str],
    version: str, capability: tuple[int, int], *, trust: bool,
) -> None:
    """Raise EngineFileError unless the file's plan may and can run here.

    gpu, plan: of the manifest; digests: SHA-256 of the file's members. version, capability: of the
    TensorRT and the GPU here. trust: also run a plan that this user did not build; a plan is code.
    """
    again = build_again(path)
    if PLAN not in digests:
        raise EngineFileError(f"{path}: expected a member {PLAN}, got none{again}")
    if plan is None or (gpu is None and not plan.targets):
        raise EngineFileError(f"{path}: its manifest does not tell what its plan was built for;"
                              " build it again from its checkpoint")
    try:
        differences = plan_differences(gpu, plan, version, capability)
    except ValueError as error:
        raise EngineFileError(f"{path}: manifest.plan.tensorrt is no version ({error}); build it"
                              " again from its checkpoint") from error
    if differences:
        raise EngineFileError(f"{path}: its TensorRT plan does not fit this machine:"
                              f" {'; '.join(differences)}{again}")
    if not (trust or is_recorded(BUILT_PLANS, digests[PLAN])):
        raise EngineFileError(f"{path}: refused: its TensorRT plan is code that this user did not"
                              " build; load it with trust=True (--trust) only if you trust where it"
                              f" comes from{again}")
