"""The main job: a short one here, three real ones in make test-all."""

import csv
import json
import re

import numpy as np
import pytest

import scrd_fast
from scrd_fast import demo
from scrd_fast.report.run_folder import read_run

pytest.importorskip("nilearn", reason="needs the demo extra")


def test_short_demo_writes_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SUBJECTS", {"train": 20, "validation": 5, "test": 3})
    monkeypatch.setattr(demo, "SLICES", 4)
    monkeypatch.setattr(demo, "PRETRAIN", demo.PRETRAIN | {"steps": 2, "coarse_steps": 1})
    monkeypatch.setattr(demo, "TRAIN", demo.TRAIN | {"steps": 2})
    result = demo.run_demo(tmp_path / "out", precision="fp32", progress=True)
    plan = capsys.readouterr().err
    assert re.search(r"a teacher for 2 steps, a student for 2 steps, .* 12 images", plan)
    assert re.search(r"About .*\d (s|min) on this machine\.", plan)
    demo.print_summary(result)
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors", "model.scrd", "overlays", "scores.csv", "summary.json",
        "teacher.safetensors", "run", "report.html"}
    summary = json.loads((out / "summary.json").read_text())
    assert {"auroc", "latency_ms", "teacher", "precision", "seconds", "auroc_untrained",
            "auroc_intensity"} <= set(summary)
    assert summary["calibration_images"] == 20
    assert summary["prior"]["components"] in (0, 4)  # of 20 people
    kept = scrd_fast.load_engine(out / "model.scrd").spec.prior
    assert (kept is not None) == summary["prior"]["written"] == (
        summary["auroc_without_prior"] is not None)
    assert summary["false_alarms"].keys() == {"0.01", "0.05", "0.1"}
    assert "anatomy is real" in summary["note"]
    rows = list(csv.DictReader((out / "scores.csv").open()))
    assert [row["label"] for row in rows] == ["1", "1", "0", "0"] * 3
    assert {row["anomalous"] for row in rows} <= {"0", "1"}
    assert all(0 < float(row["p_value"]) <= 1 for row in rows)
    assert len(list((out / "overlays").glob("*.png"))) == demo.OVERLAYS
    engine = scrd_fast.load_engine(out / "model.scrd", verify=True)
    images = demo.make_images(demo.subjects("test", 0), 4, anomalous_share=0.5).images
    np.testing.assert_allclose(engine.score(images).scores, [float(r["score"]) for r in rows],
                               atol=1e-6)
    assert [row.score for row in read_run(out / "run").rows] == [
        float(row["score"]) for row in rows]
    assert "The demo&#39;s test subjects" in (out / "report.html").read_text()
    printed = capsys.readouterr().out
    assert str(out / "report.html") in printed
    assert "test AUROC" in printed
    assert "synthetic" in printed


@pytest.mark.slow
def test_three_demo_seeds(tmp_path, capsys):
    """Mean test AUROC at least 0.945, no run below 0.925; about 20 minutes, on a CPU without bf16
    more than an hour. It had 0.958 and 0.941 on AVX-512 in bf16, and the detection bench, without
    an engine, 0.960 and 0.952: a training moves a seed's figure by 0.01."""
    values = []
    for seed in range(3):
        summary = demo.run_demo(tmp_path / str(seed), seed=seed, progress=False).summary
        values.append(summary["auroc"])
        with capsys.disabled():
            print(f"\nseed {seed}: test AUROC {summary['auroc']:.4f}, untrained"
                  f" {summary['auroc_untrained']:.3f}, intensity"
                  f" {summary['auroc_intensity']:.3f}, {summary['seconds']:.0f} s")
    with capsys.disabled():
        print(f"mean {np.mean(values):.4f}, spread {np.ptp(values):.4f}")
    assert np.mean(values) >= 0.945
    assert min(values) >= 0.925
