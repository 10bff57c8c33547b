"""The model card: what a manifest tells is in it, and what it does not tell is not claimed."""

from dataclasses import replace

import numpy as np
import pytest

from scrd_fast.engine.manifest import Training
from scrd_fast.machine import Gpu
from scrd_fast.metrics.decisions import labelled
from scrd_fast.report.model_card import list_engine_tables, list_sections
from scrd_fast.report.templates import Table, format_cell

pytest.importorskip("openvino", reason="scores by OpenVINO")


def text_of(manifest, heading):
    section = {each.heading: each for each in list_sections(manifest)}[heading]
    return " ".join(section.sentences), {
        table.caption: dict(row[:2] for row in table.rows) for table in section.tables}


@pytest.fixture
def manifest(calibrated):
    return calibrated.manifest


def test_training(manifest):
    told, tables = text_of(replace(manifest, training=None), "Training")
    assert "does not tell how the student was trained" in told
    assert tables == {}
    training = Training({"steps": 160, "noise.strength": 0.8, "resume": False, "schedule": None},
                        {"auroc": 0.97, "step": 80}, {"train": 100, "validation": 20})
    told, tables = text_of(replace(manifest, training=training), "Training")
    assert "resnet18" in told
    assert "does not tell" not in told
    assert tables["Images of the training"] == {"train": 100, "validation": 20}
    assert tables["Validation of the model that was kept"]["AUROC"] == 0.97
    assert tables["Options of the training"] == {
        "steps": 160, "noise.strength": 0.8, "resume": False, "schedule": None}


@pytest.mark.parametrize(("teacher", "words"), [
    ("imagenet", "were trained on ImageNet"), ("random", "are random"),
    ("my teacher", "come from “my teacher”")])
def test_the_teacher(manifest, teacher, words):
    changed = replace(manifest, model=replace(manifest.model, teacher=teacher))
    assert f"teacher’s weights {words}." in text_of(changed, "Training")[0]


def test_the_student(manifest):
    assert "student" not in text_of(replace(manifest, training=None), "Training")[0].split(";")[0]
    slim = replace(manifest, model=replace(manifest.model, student="slim"))
    assert "is resnet18, the student slim: it has half the channels;" in text_of(
        slim, "Training")[0]


def test_calibration(manifest):
    told, tables = text_of(manifest, "Calibration")
    assert "at most a share of 0.05 of normal images" in told
    assert "199 held-out normal images" in told
    assert "the smallest p-value is 0.005" in told
    assert "a pixel is segmented above 0.5" in told
    assert tables == {}
    without = replace(manifest, calibration=None)
    assert "not calibrated" in text_of(without, "Calibration")[0]
    assert "p-values" in text_of(manifest, "Limits")[0]
    assert "p-values" not in text_of(without, "Limits")[0]


@pytest.mark.parametrize(("rule", "target", "words"), [
    ("f1", None, "with the best F1"), ("sensitivity", 0.9, "at a sensitivity of at least 0.9"),
    ("specificity", 0.8, "at a specificity of at least 0.8")])
def test_calibration_with_labels(manifest, rule, target, words):
    rng = np.random.default_rng(0)
    decisions = labelled(rng.normal(0, 1, 60), np.full((60, 3), 1 / 3), rng.normal(2, 1, 60), rule,
                         target)
    told, tables = text_of(replace(manifest, calibration=decisions), "Calibration")
    assert words in told
    (figures,) = tables.values()
    assert set(figures) == {"sensitivity", "specificity", "F1", "AUROC"}


def test_limits_are_those_of_the_engine(manifest):
    limits = text_of(manifest, "Limits")[0]
    assert "64 × 64 pixels" in limits
    assert "16, 8 and 4 cells" in limits
    assert "maximum" in limits
    plain = replace(manifest, spec=replace(manifest.spec, reduction="mean", blur_sigma=0.0))
    assert "blurred" not in text_of(plain, "Limits")[0]
    assert "mean" in text_of(plain, "Limits")[0]


def test_the_engine(manifest):
    gpu = Gpu("Some GPU", (8, 6), "12.4", None)
    changed = replace(manifest, machine=replace(manifest.machine, gpu=gpu))
    tables = {each.caption: dict(each.rows) for each in list_engine_tables(changed)}
    assert tables["Machine of the build"]["GPU, compute capability"] == (8, 6)
    assert tables["Libraries of the build"] == manifest.versions
    assert len(tables["Work for one image"]) == 3
    assert len(list_engine_tables(replace(manifest, work=None))) == 3


def test_cells():
    values = (160, 0.123456, True, None, (0.5, 0.999), "a_b")
    assert [format_cell(value) for value in values] == [
        "160", "0.1235", "yes", "–", "0.5, 0.999", "a_b"]
    rows = [("a", 1, 2.5, 3), ("b", None, True, "none")]
    assert Table("", ("", "", "", ""), rows).numeric == {1, 2}
    assert Table("", ("",), []).numeric == set()
