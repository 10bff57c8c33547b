"""What "auto" does on classes of CPUs, shown by a cap on the instructions that oneDNN may use."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import scrd_fast
from scrd_fast.backends.registry import native_precisions
from scrd_fast.building import candidates
from scrd_fast.building.candidates import explain_slower
from scrd_fast.engine.manifest import Attempt
from scrd_fast.machine import CAP, cpu_flags, why_no_vnni
from scrd_fast.metrics.agreement import LIMITS, Limits
from scrd_fast.model.checkpoint import save_checkpoint
from scrd_fast.precisions import QUANTISED
from tests.cli.commands import main
from tests.support.models import KEEPS_THE_LIMITS

pytest.importorskip("openvino")

# A process of its own: oneDNN reads its cap once.
_BUILD = """
import json, sys
from dataclasses import asdict
import numpy as np
import scrd_fast
from scrd_fast.backends.registry import native_precisions
folder, keep = sys.argv[1], json.loads(sys.argv[2])
with scrd_fast.build_engine(f"{folder}/model.safetensors", f"{folder}/m.scrd", backend="openvino",
                            images=np.load(f"{folder}/normals.npy"), keep=keep,
                            buckets=(1,)) as engine:
    print(json.dumps({"offered": native_precisions("openvino"),
                      "precision": engine.manifest.precision,
                      "candidates": [asdict(c) for c in engine.manifest.fidelity.candidates]}))
"""


@pytest.mark.slow
@pytest.mark.skipif("int8" not in native_precisions("openvino"),
                    reason="OpenVINO does not compute in int8 on this CPU")
@pytest.mark.parametrize(
    "cap", ["AVX2", "AVX2_VNNI", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", None])
def test_auto_takes_the_fastest_that_the_class_offers(cap, trained, tmp_path, monkeypatch):
    monkeypatch.delenv(CAP, raising=False)
    here = native_precisions("openvino")
    checkpoint, normals = trained
    save_checkpoint(checkpoint, tmp_path / "model.safetensors")
    np.save(tmp_path / "normals.npy", normals)
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, str(tmp_path), json.dumps(KEEPS_THE_LIMITS)],
        env=os.environ | ({CAP: cap} if cap else {}), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    built = json.loads(done.stdout)
    has_bf16 = cap in ("AVX512_CORE_BF16", None)
    assert built["offered"] == [p for p in here if p != "bf16" or has_bf16]
    tried = {row["precision"]: row for row in built["candidates"]}
    assert tried.keys() == set(built["offered"])
    times = {name: row["ms"] for name, row in tried.items() if row["ms"] is not None}
    assert times[built["precision"]] == min(times.values())
    for name, row in tried.items():
        left_out = name in QUANTISED and name != built["precision"]
        assert (row["why_not"] is not None) == (left_out or row["ms"] is None), row
    # Sums that saturate, as they may without VNNI, flip 0.016.
    assert tried["int8"]["report"]["flipped"] <= LIMITS["int8"].flipped


@pytest.mark.slow
@pytest.mark.skipif("int8" not in native_precisions("openvino"),
                    reason="OpenVINO does not compute in int8 on this CPU")
def test_int8_that_is_slower_is_left_out_in_one_line(trained, tmp_path, monkeypatch, capsys):
    """Times of a machine whose speed changes while it builds: those of one moment are compared."""
    times = {"fp32": {"fp32": 3.0}, "fp32+int8": {"fp32": 7.4, "int8": 9.1}}
    monkeypatch.setattr(candidates, "time_in_turn", lambda calls, *_: times["+".join(calls)])
    monkeypatch.setenv(CAP, "AVX2")
    checkpoint, normals = trained
    path = save_checkpoint(checkpoint, tmp_path / "model.safetensors")
    with scrd_fast.build_engine(path, backend="openvino", images=normals[:8], buckets=(1,),
                                keep=KEEPS_THE_LIMITS, limits=Limits()) as engine:
        manifest = engine.manifest
    fp32, int8 = manifest.fidelity.candidates
    assert manifest.precision == "fp32"
    assert (fp32.ms, fp32.why_not, int8.ms) == (7.4, None, 9.1)
    assert int8.report is not None, "it keeps the limits"
    assert int8.why_not == ("int8 was left out: 9.1 ms an image, fp32 takes 7.4"
                            + (f"; {why_no_vnni()}" if why_no_vnni() else ""))
    assert main("info", path.with_suffix(".scrd")) == 0
    told = json.loads(capsys.readouterr().out)["fidelity"]["candidates"]
    assert [row["why_not"] for row in told] == [None, int8.why_not]


def test_what_is_left_out_and_what_is_merely_slower():
    taken, slower = Attempt("fp32", ms=7.4), Attempt("int8", ms=9.1)
    assert explain_slower(taken, taken, "no VNNI") is taken
    assert explain_slower(slower, taken, None).why_not == (
        "int8 was left out: 9.1 ms an image, fp32 takes 7.4")
    assert explain_slower(slower, taken, "this CPU has no VNNI").why_not.endswith(
        "fp32 takes 7.4; this CPU has no VNNI")
    for other in (Attempt("fp32", ms=8.0), Attempt("int8", why_not="int8: not finite")):
        assert explain_slower(other, Attempt("bf16", ms=1.0), None) is other


@pytest.mark.skipif("avx2" not in cpu_flags(), reason="VNNI is of x86")
@pytest.mark.parametrize("cap", ["AVX2", "avx512_core"])
def test_why_there_is_no_vnni(cap, monkeypatch):
    monkeypatch.setenv(CAP, cap)
    assert why_no_vnni() in ("this CPU has no VNNI",
                             f"ONEDNN_MAX_CPU_ISA={cap.upper()} keeps oneDNN from VNNI")
    monkeypatch.delenv(CAP)
    assert (why_no_vnni() is None) == bool(cpu_flags() & {"avx_vnni", "avx512_vnni", "amx_int8"})
