"""What this machine is."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scrd_fast import _native

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Gpu:
    """A GPU and the libraries that drive it: `cuda` and `cudnn` are PyTorch's."""

    name: str
    compute_capability: tuple[int, int]
    cuda: str | None
    cudnn: int | None


@dataclass(frozen=True)
class Machine:
    """What decides which compiled code runs.

    machine, system: as Python's platform calls them; cpu: its model, as the system calls it;
    cpu_capability: the widest instruction set of ours that it runs ("plain", "neon", "avx2",
    "avx512");
    cores: that this process may use; gpu: where one is used.
    """

    machine: str
    system: str
    cpu_capability: str
    cpu: str
    cores: int
    gpu: Gpu | None = None


def _cpu() -> str:
    listed = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", listed.read_text()) if listed.exists() else []
    return names[0] if names else platform.processor()


def count_cores() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def this_machine(device: "torch.device | None" = None) -> Machine:
    """The machine at hand; device: the GPU, where one is used."""
    return Machine(platform.machine(), platform.system(), _native.isas()[-1], _cpu(),
                   count_cores(), None if device is None else _gpu(device))


def _gpu(device: "torch.device") -> Gpu:
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return Gpu(torch.cuda.get_device_name(device), (major, minor), torch.version.cuda,
               torch.backends.cudnn.version())


def cpu_flags() -> frozenset[str]:
    """What the CPU can do, as Linux names it ("avx512_vnni", "asimddp"); empty elsewhere."""
    listed = Path("/proc/cpuinfo")
    found = re.search(r"^(?:flags|Features)\s*: (.*)$",
                      listed.read_text() if listed.exists() else "", re.MULTILINE)
    return frozenset(found[1].split() if found else ())


# oneDNN, which computes convolutions, is kept by this variable from what is not named in it. The
# CPU's own capabilities, which runtimes tell, do not say so.
CAP = "ONEDNN_MAX_CPU_ISA"
_CAPS_WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")
_CAPS_WITHOUT_BF16 = (*_CAPS_WITHOUT_VNNI, "AVX2_VNNI", "AVX512_CORE_VNNI")


def _cap() -> str:
    return os.environ.get(CAP, "").upper()


def bf16_is_capped() -> bool:
    """Whether the user keeps oneDNN from the instructions for bf16."""
    return _cap() in _CAPS_WITHOUT_BF16


def why_no_vnni() -> str | None:
    """Why convolutions in int8 do without the instructions for their sums (VNNI, or int8 tiles);
    None where they have them, or nothing is known, or the CPU is none of x86's."""
    flags = cpu_flags()
    if "avx2" not in flags:
        return None
    if not flags & {"avx_vnni", "avx512_vnni", "amx_int8"}:
        return "this CPU has no VNNI"
    if _cap() in _CAPS_WITHOUT_VNNI:
        return f"{CAP}={_cap()} keeps oneDNN from VNNI"
    if _cap() == "AVX2_VNNI" and "avx_vnni" not in flags:
        return f"{CAP}={_cap()} keeps oneDNN from the VNNI of this CPU, which is AVX-512's"
    return None


def pytorch_has_bf16() -> bool:
    """Whether PyTorch computes convolutions in bf16 on this CPU, and not only imitates it."""
    import torch

    # torch.cpu.get_capabilities came after 2.11; without it nothing is known.
    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(told.get("avx512_bf16") or told.get("amx_bf16")) and not bf16_is_capped()
