"""Experiments on the engine's path on a GPU: python -m benchmarks.gpu_lab [EXPERIMENT...]

Each is a process of its own with a time limit, so that one half-hour with a GPU answers all of
them: a failure or a hang costs no more than its own time. What they give is printed as it comes and
kept in build/gpu_lab.json. Unlike the benchmarks they judge nothing: they say where the time goes
and what a change would be worth before it is made. Wide-ResNet-50-2, 256 x 256, random weights.
"""

import argparse
import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_networks import EXPERIMENTS, Found
from scrd_fast.backends.registry import cuda_missing
from scrd_fast.files import atomic_write

for module in ("gpu_experiments", "gpu_convolutions"):  # which fill the list, in this order
    import_module(f"benchmarks.{module}")

ROOT = Path(__file__).parent.parent
OUT = ROOT / "build" / "gpu_lab.json"
SECONDS = 1500.0  # of the half-hour; the rest is the machine's start and the extension's build


def run_apart(name: str, seconds: float) -> Found:
    """One experiment in a process of its own: what it gave, or why it gave nothing."""
    command = [sys.executable, "-m", "benchmarks.gpu_lab", "--here", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT,
                              timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"no result within {seconds:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: Found = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> int:
    listed = "\n".join(f"  {name:<12}{each.about}" for name, each in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "") + "\nexperiments, in the order of worth:\n" + listed,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of them")
    parser.add_argument("--here", action="store_true", help="in this process, and print the JSON")
    arguments = parser.parse_args()
    names = arguments.experiments or list(EXPERIMENTS)
    if unknown := sorted(set(names) - set(EXPERIMENTS)):
        parser.error(f"expected experiments of {', '.join(EXPERIMENTS)}; got {', '.join(unknown)}")
    if missing := cuda_missing(None):
        print(f"gpu-lab: {missing}", file=sys.stderr)
        return 2
    if arguments.here:
        print(json.dumps({name: EXPERIMENTS[name].run() for name in names}
                         if len(names) > 1 else EXPERIMENTS[names[0]].run()))
        return 0
    from benchmarks.gpu_check import gpu_environment

    results: Found = {"environment": gpu_environment()}
    end = time.monotonic() + arguments.seconds
    for name in names:
        left = end - time.monotonic()
        results[name] = ({"failed": "not run: the time is spent"} if left < 30 else
                         run_apart(name, min(left, EXPERIMENTS[name].seconds)))
        print(f"{name}: {json.dumps(results[name], indent=1)}", flush=True)
        with atomic_write(OUT) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all("failed" not in results[name] for name in names) else 1


if __name__ == "__main__":
    sys.exit(main())
