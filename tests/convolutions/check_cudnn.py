"""Plans of cuDNN for GPUs that are not here, which it makes of their properties alone.

In a process of its own, as the library path must be set before: python -m
tests.convolutions.check_cudnn <check>. Prints what came of the check, as JSON. Nothing is run.
"""

import json
import sys
from typing import Any

import cudnn

from scrd_fast.backends import cudnn_plans
from scrd_fast.backends.convolutions import MOST, Choice, Choices, PlanRefused
from scrd_fast.backends.cudnn_plans import UNWANTED, CudnnPlanner
from tests.convolutions.layers import layers_of

# As NVIDIA documents each, in the names that cuDNN reads.
COMMON = {
    "maxGridSize": [2**31 - 1, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536, "warpSize": 32, "maxSharedMemoryPerBlock": 49152,
    "oversizedSharedMemoryPerBlock": 0, "reservedSharedMemoryPerBlock": 1024,
    "maxRegistersPerSM": 65536, "maxThreadsPerBlock": 1024, "pciDeviceId": 0, "isTccDriver": 0,
    "supportCoopLaunch": 1, "driverVer": 13000, "cudaDeviceId": 0, "smCountOrigin": 0,
}
GPUS = {
    "H100": COMMON | {
        "deviceVer": 900, "multiProcessorCount": 132, "maxSharedMemoryPerBlockOptin": 232448,
        "maxCtasPerSM": 32, "maxThreadsPerSM": 2048, "smClockRateKHz": 1980000,
        "memClockRateKHz": 2619000, "memoryBusWidth": 5120, "l2CacheSize": 52428800,
        "totalGlobalMem": 85017493504, "deviceName": "NVIDIA H100 80GB HBM3"},
    "A100": COMMON | {
        "deviceVer": 800, "multiProcessorCount": 108, "maxSharedMemoryPerBlockOptin": 166912,
        "maxCtasPerSM": 32, "maxThreadsPerSM": 2048, "smClockRateKHz": 1410000,
        "memClockRateKHz": 1215000, "memoryBusWidth": 5120, "l2CacheSize": 41943040,
        "totalGlobalMem": 42297851904, "deviceName": "NVIDIA A100-SXM4-40GB"},
    "RTX 4090": COMMON | {
        "deviceVer": 890, "multiProcessorCount": 128, "maxSharedMemoryPerBlockOptin": 101376,
        "maxCtasPerSM": 24, "maxThreadsPerSM": 1536, "smClockRateKHz": 2520000,
        "memClockRateKHz": 10501000, "memoryBusWidth": 384, "l2CacheSize": 75497472,
        "totalGlobalMem": 25386352640, "deviceName": "NVIDIA GeForce RTX 4090"},
}


def planner(gpu: str) -> CudnnPlanner:
    properties = cudnn.create_device_properties(json.dumps(GPUS[gpu]))
    return CudnnPlanner(None, device_property=properties)


# How cuDNN ends where a plan's code, compiled by then, is given to a driver that is not there.
NO_DRIVER = "cuLibraryLoadData returned error"


def plans(gpu: str, precision: str) -> dict[str, Any]:
    """For every layer of both sizes of network plans are offered, and one is compiled again from
    what an engine file would keep: as far as that goes without a driver to load it."""
    ours, fewest, engines = planner(gpu), MOST, set()
    found = {"layers": 0, "of 8 bits": 0, "compiled": 0, "compiled, not loaded": 0}
    for backbone, side, images in (("resnet18", 64, 1), ("wide_resnet50_2", 256, 8)):
        for layer in layers_of(backbone, side, images, precision):
            offered = ours.candidates(layer, MOST)
            if not offered:
                raise AssertionError(f"nothing is offered for {layer}")
            fewest = min(fewest, len(offered))
            engines.update(choice.engine for choice in offered)
            found["layers"] += 1
            found["of 8 bits"] += layer.eight_bits
            kept = Choices.from_bytes(Choices(gpu, ours.version(), {
                layer: offered[0]}).to_bytes())
            try:
                ours.way(layer, kept.ways[layer])
                found["compiled"] += 1
            except PlanRefused as error:
                if NO_DRIVER not in str(error):
                    raise
                found["compiled, not loaded"] += 1
    return found | {"fewest": fewest, "engines": sorted(engines)}


def refused() -> list[str]:
    """An engine that cuDNN does not have, and knobs that an engine does not have."""
    ours = planner("H100")
    layer = layers_of("resnet18", 64, 1, "fp16")[1]
    (offered,) = ours.candidates(layer, 1)
    told = []
    for choice in (Choice(9999), Choice(offered.engine, ((2, 2**30),))):
        try:
            ours.way(layer, choice)
        except PlanRefused as error:
            told.append(str(error))
    return told


def barred() -> list[str]:
    """One plan with the notes that are not wanted as they are, and with one that it has."""
    ours, told = planner("H100"), []
    layer = layers_of("resnet18", 64, 1, "fp16")[1]
    (offered,) = ours.candidates(layer, 1)
    for unwanted in (UNWANTED, ("TENSOR_CORE",)):
        cudnn_plans.UNWANTED = unwanted
        try:
            ours.way(layer, offered)
            told.append("compiled")
        except PlanRefused:
            told.append("refused")
    return told


def main() -> None:
    check, *arguments = sys.argv[1:]
    print(json.dumps({"plans": plans, "refused": refused, "barred": barred}[check](*arguments)))


if __name__ == "__main__":
    main()
