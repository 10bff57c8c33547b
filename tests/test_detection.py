"""The bench of detection: a quick run, which is stopped and goes on, and the page of its rows."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nilearn", reason="needs the demo extra")

from benchmarks.detection import __main__ as bench
from benchmarks.detection import page
from benchmarks.detection.data_sets import DATA_SETS, SOURCES, shrink
from benchmarks.detection.methods import METHODS, PUBLISHED, json_of, scaled
from benchmarks.detection.rows import Row, figures_of, read_rows, store_row
from benchmarks.timing import Others, read_work
from scrd_fast import demo
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.metrics.ranking import auroc
from scrd_fast.model.checkpoint import load_checkpoint

TRIED = ("published", "PatchCore", "PaDiM", "autoencoder", "intensity")  # a line of each kind

ALL = dict(METHODS)
PACE = demo.Pace(1, 1)


@pytest.fixture(scope="module")
def few():
    """One source, and a method of each kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(SOURCES, "textures")
        for name in METHODS.keys() - {*TRIED}:
            patch.delitem(METHODS, name)
        yield


@pytest.fixture(scope="module")
def place(few, tmp_path_factory) -> Path:
    """Where a quick run was stopped after the first method, and gone on with."""
    work = tmp_path_factory.mktemp("detection")
    first = bench.Bench(work, work / "results", bench.QUICK_BUDGET, PACE, quick=True)
    stopped = first.run()
    line = next(stopped)
    stopped.close()
    assert line.startswith("[1/5] brain, seed 0, published: AUROC demo 0.")
    (teacher,) = work.glob("teachers/*.safetensors")
    rows, made = read_rows(work / "results"), teacher.stat().st_mtime_ns
    assert [(row.data_set, row.method) for row in rows] == [
        ("demo", "published"), ("lesions", "published")]
    assert bench.main(["--quick", "--work", str(work)]) == 0
    assert [teacher] == list(work.glob("teachers/*.safetensors"))
    assert teacher.stat().st_mtime_ns == made, "methods share a teacher, and runs do"
    found = read_rows(work / "results")
    assert [row for row in found if row in rows] == rows, "what was there was not computed again"
    assert not [each for each in work.iterdir() if each.name not in ("results", "teachers")]
    return work


@pytest.fixture
def alike():
    """Two methods, and one source; afterwards all is as it was, in its order."""
    before = dict(METHODS), dict(SOURCES)
    for mapping, some in ((METHODS, {name: ALL[name] for name in ("ours", "ours, prior")}),
                          (SOURCES, {"brain": SOURCES["brain"]})):
        mapping.clear()
        mapping.update(some)
    yield
    for mapping, all_of_them in zip((METHODS, SOURCES), before, strict=True):
        mapping.clear()
        mapping.update(all_of_them)


@pytest.mark.slow
def test_methods_that_begin_alike_share_a_model(tmp_path, alike):
    """The prior's judge has few images here: whether it is worth it is chance, as for a user."""
    assert bench.main(["--quick", "--work", str(tmp_path)]) == 0
    (model,) = tmp_path.glob("teachers/*-model-*.safetensors")
    assert load_checkpoint(model).spec.prior is None
    rows = read_rows(tmp_path / "results")
    assert {row.method for row in rows} == {"ours", "ours, prior"}
    assert {row.settings["after"] for row in rows} == {None, "with_prior"}


@pytest.fixture
def rows(place) -> list[Row]:
    return read_rows(place / "results")


@pytest.mark.slow
def test_a_finished_run_has_nothing_to_do(place, rows, capsys, monkeypatch):
    assert {(row.data_set, row.method) for row in rows} == {
        (data_set, method) for data_set in ("demo", "lesions") for method in TRIED}
    assert len(rows) == 2 * len(TRIED)
    assert bench.main(["--quick", "--work", str(place)]) == 0
    assert capsys.readouterr().out == ""
    # A method that is changed is computed again, in the place of what it was; no other is.
    changed = replace(METHODS["PaDiM"], train={"count": 20})
    monkeypatch.setitem(METHODS, "PaDiM", changed)
    again = bench.Bench(place, place / "results", bench.QUICK_BUDGET, PACE, quick=True)
    assert [(unit.name, unit.data_sets) for unit in again.units()] == [
        ("PaDiM", ("demo", "lesions"))]
    assert "| PaDiM | 0" not in page.with_tables(f"{page.BEGIN}{page.END}", rows)


@pytest.mark.slow
def test_a_row_tells_its_figures(rows):
    for row in rows:
        assert set(row.kinds) == set(map(str, range(len(DATA_SETS[row.data_set].kinds) + 1)))
        assert len(row.scores) == len(row.labels) == len(row.groups) == len(row.kinds)
        assert row.figures["auroc"] == auroc(row.labels, row.scores)
        assert all(0 <= row.figures[name] <= 1 for name in (
            "auroc", "average_precision", "aupro", "best_dice"))
        assert row.figures["training_s"] > 0
        assert row.figures["ms_per_image"] > 0
        assert row.by_kind.keys() == set(DATA_SETS[row.data_set].kinds)
    by_name = {(row.data_set, row.method): row for row in rows}
    one = by_name["lesions", "intensity"]
    normal = np.array(list(one.kinds)) == "0"
    small = np.array(list(one.kinds)) == "2"
    chosen = normal | small
    assert one.by_kind["small"]["auroc"] == auroc(small[chosen], np.array(one.scores)[chosen])
    assert by_name["demo", "intensity"].by_kind["lesion"] == {
        name: value for name, value in by_name["demo", "intensity"].figures.items()
        if name not in ("training_s", "ms_per_image")}
    # The same images with the same baseline of the demo.
    images = DATA_SETS["demo"].images(0, True)
    train = SOURCES["brain"].normals(0, True).train
    np.testing.assert_allclose(by_name["demo", "intensity"].scores,
                               demo.intensity_scores(train, images.images), rtol=1e-6)
    assert by_name["demo", "intensity"].groups.tolist() == images.subjects.tolist()


def test_the_figures_of_maps():
    masks = np.zeros((4, 8, 8), bool)
    masks[2, 1:3, 1:3] = masks[3, 4:6, 5:8] = True
    rng = np.random.default_rng(0)
    maps = (masks + rng.uniform(0, 0.5, masks.shape)).astype(np.float32)
    found = figures_of(maps.max((1, 2)).astype(float), maps, masks)
    assert found == {"auroc": 1, "average_precision": 1, "aupro": 1, "best_dice": 1}
    worse = figures_of(-maps.max((1, 2)).astype(float), -maps, masks)
    assert worse["auroc"] == worse["aupro"] == 0
    assert 0 < worse["best_dice"] < 0.2


@pytest.mark.slow
def test_rows_that_are_stored_come_back(rows, tmp_path):
    for row in [rows[1], rows[0], rows[1]]:
        store_row(tmp_path, row)
    assert sorted(read_rows(tmp_path), key=rows.index) == rows[:2]
    lines = [json.loads(line) for path in tmp_path.glob("*.jsonl")
             for line in path.read_text().splitlines()]
    assert all(isinstance(line["scores"][0], float) for line in lines)


@pytest.mark.slow
def test_the_page_says_what_the_rows_do(rows):
    text = page.with_tables(f"before\n{page.BEGIN}\nold\n{page.END}\nafter", rows)
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    assert "old" not in text
    assert "## textures" not in text
    for name in ("demo", "lesions"):
        section = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        for row in (row for row in rows if row.data_set == name):
            (line,) = (each for each in section.splitlines()
                       if each.startswith(f"| {row.method} | {row.figures['auroc']:.3f} |"))
            assert f"| {row.figures['aupro']:.3f} |" in line
            assert f"| {row.figures['ms_per_image']:.1f} |" in line
            assert (" to " in line) == (row.method != page.BASE)
        where = rows[0].environment
        assert f"{where['cpu']}, {where['cores']} cores" in section
        assert rows[0].time[:10] in section
    assert "| method | textured | small | oedema | missing |" in text
    assert page.with_tables(text, rows) == text
    nothing = page.with_tables(text, [])
    assert page.NOTHING in nothing
    assert "## demo" not in nothing
    with_old = page.with_tables(text, [*rows, replace(rows[0], method="gone")])
    assert with_old == text


def test_the_page_in_the_docs_is_that_of_the_stored_rows(monkeypatch):
    """Nobody writes a figure into it."""
    monkeypatch.setattr(page, "METHODS", ALL)
    text = bench.PAGE.read_text()
    assert page.with_tables(text, read_rows(bench.RESULTS)) == text


def test_the_readme_has_the_figures_of_the_stored_rows():
    rows, found = read_rows(bench.RESULTS), {}
    lines = (Path(__file__).parent.parent / "README.md").read_text().splitlines()
    for data_set, begins in (("demo", "| [detection](docs/detection.md), image AUROC"),
                             ("lesions", "| the same on a second set of lesions"),
                             ("textures", "| the same on tiles of real pictures")):
        (line,) = (line for line in lines if line.startswith(begins))
        found[data_set] = [float(value) for value in re.split("[,;]", line.split("|")[2])]
    assert found == {
        data_set: [round(float(np.mean([row.figures["auroc"] for row in rows if
                                        (row.data_set, row.method) == (data_set, method)])), 3)
                   for method in ("ours, pasted, prior", "published, pasted", "PatchCore, pasted",
                                  "PaDiM, pasted")]
        for data_set in found}


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux tells of other processes")
def test_work_of_other_processes_is_measured_and_own_is_not():
    others, began = Others(), read_work()
    assert others.cores() is None, "too early to tell"
    while read_work().own - began.own < 0.3:
        pass
    work = "import time\nwhile time.process_time() < 1.2: pass"
    with subprocess.Popen([sys.executable, "-c", work]) as child:
        # Not reaped: ended children are a part of this process's own work.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        found = others.cores() * (read_work().clock - began.clock)
        assert found > 1
        assert found < read_work().all_of_it - began.all_of_it - 0.2


def make_row(method: str, seed: int, scores: np.ndarray, subjects: np.ndarray) -> Row:
    """Of images whose labels alternate."""
    kinds = "01" * (len(scores) // 2)
    settings = METHODS[method].settings(128, 1)
    return Row("demo", method, seed, 1.0, settings, {}, {}, tuple(scores.tolist()), kinds,
               tuple((int(each), 2) for each in subjects), {}, "", "2000-01-01T00:00:00")


def test_a_difference_is_paired_by_subject():
    """Two methods that err alike differ by little, however much each of them errs; a method and
    another that is as good, but errs elsewhere, by an unknown amount."""
    rng = np.random.default_rng(0)
    ours, base, other = [], [], []
    for seed in range(3):
        subjects = np.arange(40) + 100 * seed
        hard = np.repeat(rng.normal(size=40), 2) + rng.normal(size=80) + np.tile([0, 1.0], 40)
        base.append(make_row("published", seed, hard, subjects))
        ours.append(make_row("PaDiM", seed, hard + np.tile([0, 0.3], 40), subjects))
        other.append(make_row("PaDiM", seed, rng.permuted(hard.reshape(40, 2), axis=0).ravel(),
                              subjects))
    means = [np.mean([auroc(row.labels, row.scores) for row in each]) for each in (ours, base)]
    value, interval = page.difference_of(ours, base)
    assert value == pytest.approx(means[0] - means[1])
    assert 0 < interval.low < value < interval.high < value + 0.03
    value, unpaired = page.difference_of(other, base)
    assert value == pytest.approx(0, abs=1e-12)
    assert unpaired.low < -0.05
    assert unpaired.high > 0.05
    value, same = page.difference_of(base, base)
    assert value == 0
    assert same is None
    # Only seeds that both have count.
    assert page.difference_of(ours, base[1:]) == page.difference_of(ours[1:], base[1:])


@pytest.mark.slow
def test_the_budget_is_that_of_the_stored_rows_or_what_fits(rows, few, tmp_path):
    def chosen(budget, pass_s):
        return bench.choose_bench(tmp_path, tmp_path / "results", budget, demo.Pace(pass_s, pass_s))

    assert chosen(None, 1e-4).budget == 1
    assert chosen(0.6, 100).budget == 0.6
    assert chosen(None, 100).budget == bench.BUDGETS[-1]
    middle = chosen(None, 3599 * bench.MOST_HOURS / sum(
        (half := bench.Bench(tmp_path, tmp_path / "results", 0.5, PACE)).seconds(half.units())))
    assert middle.budget == 0.5
    assert "15 fits to do, with 0.5 times" in bench.plan(middle)
    store_row(tmp_path / "results", replace(rows[0], budget=0.7))
    assert chosen(None, 100).budget == 0.7


def test_fits_can_be_chosen(few, tmp_path, capsys):
    def names(*only: str) -> list[str]:
        units = bench.Bench(tmp_path, tmp_path / "results", 1.0, PACE, only=only).units()
        return [f"{unit.seed} {unit.name}" for unit in units]

    assert names("brain/[01]/PaDiM", "*/2/published*") == [
        "0 PaDiM", "1 PaDiM", *(f"2 {name}" for name in TRIED if name.startswith("published"))]
    assert names("textures/*") == []
    with pytest.raises(SystemExit):
        bench.main(["--only", "brain/0/nothing"])
    assert "expected SOURCE/SEED/METHOD, for instance brain/0/published, got 'brain/0/nothing'" in (
        capsys.readouterr().err)


def test_options_scale_and_are_told():
    options = {"steps": 2000, "coarse_steps": 0, "validate_every": 80, "blur_sigma": 2.0}
    assert scaled(options, 0.5) == options | {"steps": 1000, "validate_every": 40}
    assert scaled(options, 1e-9) == options | {"steps": 2, "validate_every": 2}
    assert json_of({"noise": NoiseConfig(octaves=3), "x": (1, 2)}) == {
        "noise": {"octaves": 3}, "x": [1, 2]}
    assert PUBLISHED["steps"] == demo.TRAIN["steps"], "as many steps as ours"
    with pytest.raises(TypeError, match="expected an option that JSON has, got object"):
        json_of({"x": object()})


def test_quick_masks_keep_small_anomalies():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 3, 6] = True
    assert np.argwhere(shrink(masks, 4)).tolist() == [[0, 0, 1]]
    images = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert shrink(images, 4).tolist() == [[[0, 4], [32, 36]]]


def test_a_bad_budget_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--budget", "0"])
    assert "--budget: expected a number above 0, got 0.0" in capsys.readouterr().err
