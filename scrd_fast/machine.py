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


def bf16_is_capped() -> bool:
    """Whether the user keeps oneDNN, which computes convolutions, from the instructions for bf16.

    The CPU's own capabilities, which runtimes tell, do not say so.
    """
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return cap in ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")


def pytorch_has_bf16() -> bool:
    """Whether PyTorch computes convolutions in bf16 on this CPU, and not only imitates it."""
    # torch.cpu.get_capabilities came after 2.11; without it nothing is known.
    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(told.get("avx512_bf16") or told.get("amx_bf16")) and not bf16_is_capped()
