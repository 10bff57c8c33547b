"""What this machine is."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch


def _cpu() -> str:
    """Its model, as the system calls it."""
    listed = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", listed.read_text()) if listed.exists() else []
    return names[0] if names else platform.processor()


def fingerprint(device: torch.device | None = None) -> dict[str, Any]:
    """The machine: what decides which compiled code runs; device: the GPU, where one is used."""
    machine: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }
    if device is not None:
        machine |= {
            "gpu": torch.cuda.get_device_name(device),
            "compute_capability": list(torch.cuda.get_device_capability(device)),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return machine
