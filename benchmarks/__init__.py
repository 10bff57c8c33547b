"""Benchmarks: equality is checked before anything is timed."""

import sys

# Peers import openvino, which would send an event to its makers without this.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
