"""The page about a run, without a browser: its parts, what is escaped, what is left out, its size;
and the verb."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import chain, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

import scrd_fast
from scrd_fast.errors import DataError, InputError, OutputError
from scrd_fast.report.rows import ScoreRow
from scrd_fast.report.run_folder import collect_run, read_run
from scrd_fast.report.run_report import (
    Names,
    choose_images,
    number_patients,
    show_text,
    write_report,
)
from scrd_fast.report.templates import SCRIPTS, render_page
from tests.cli.commands import main
from tests.report.generated import (
    HOSTILE,
    HOSTILE_GROUP,
    HOSTILE_PATIENT,
    add_failures,
    make_evaluation,
    make_hostile,
    make_images,
    write_run,
)
from tests.support.without_training import base_only

pytest.importorskip("openvino", reason="scores by OpenVINO")
pytest.importorskip("jinja2", reason="needs the report extra")

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """The elements of a page, which must be closed in order, and the texts of some of them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.append((self.open[-1], data))

    def all(self, tag):
        return [attributes for each, attributes in self.seen if each == tag]

    def text(self, tag):
        return "".join(data for each, data in self.texts if each == tag)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def report(folder, tmp_path, **options):
    write_report(read_run(folder), tmp_path / "r.html", **options)
    return (tmp_path / "r.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(run_folder, tmp_path_factory):
    return report(run_folder, tmp_path_factory.mktemp("page"))


def test_parts_and_headings(page):
    found = Reader(page)
    for tag in ("header", "nav", "main", "footer", "h1", "dialog"):
        assert len(found.all(tag)) == 1, tag
    levels = [int(tag[1]) for tag, _ in found.seen if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in found.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.seen:
        for name in ("for", "aria-labelledby"):
            assert attributes.get(name) is None or attributes[name] in ids
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids
    text = found.text("p") + found.text("li")
    for words in ("300 images scored", "3 files could not be scored", "not a medical device",
                  "No decision about a patient", "chosen so that at most a share of 0.05"):
        assert words in text


def test_nothing_is_loaded_and_nothing_foreign_runs(page):
    """The policy knows the style and the script by their digests; the page has no other, and no
    attribute that would run or load anything."""
    found = Reader(page)
    policy = found.all("meta")[1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    rules = dict(each.strip().split(" ", 1) for each in policy["content"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    script, style = page.rsplit("<script>", 1)[1].split("</script>")[0], found.text("style")
    for name, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert len(found.all("style")) == 1
    assert [each.get("type") for each in found.all("script")] == ["application/json", None]
    for tag, attributes in found.seen:
        assert not [name for name in attributes if name.startswith("on") or name in (
            "style", "src", "srcset", "action")], tag
        assert attributes.get("href", "#").startswith(("#", "data:,"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(",
                         script)


def test_the_data_are_those_of_the_run(run_folder, page):
    data, rows = data_of(page), read_run(run_folder).rows
    scored = [row for row in rows if row.error is None]
    assert data["scores"] == [row.score for row in scored]
    assert data["labels"] == [row.label for row in scored]
    groups = [None if g < 0 else data["groupNames"][g] for g in data["groups"]]
    assert groups == [row.group for row in scored]
    assert len(set(data["patients"])) == len({row.patient for row in scored})
    threshold = read_run(run_folder).manifest.calibration.threshold
    assert np.float32(data["threshold"]) == np.float32(threshold)
    assert [item["at"] for item in data["items"]] == [*range(300)]
    assert data["items"][30]["name"] == scored[30].image.removeprefix("/data/set/")
    volumes = [item["volume"] for item in data["items"]]
    assert volumes == [0] * 12 + [None] * 288
    labels, scores = [row.label for row in scored], [row.score for row in scored]
    assert f"AUROC {roc_auc_score(labels, scores):.3f}" in page
    assert f"average precision {average_precision_score(labels, scores):.3f}" in page


def test_maps_and_pictures_come_through(run_folder, page):
    made = list(make_images(300))
    item, last = data_of(page)["items"][30], data_of(page)["items"][9]
    values = np.frombuffer(base64.b64decode(item["bytes"]), np.uint8)
    start = 0
    for about, wanted in zip([item["map"], *item["distances"]],
                             [made[30].map, *made[30].distances], strict=True):
        size = about["height"] * about["width"]
        assert (about["height"], about["width"]) == wanted.shape
        found = about["low"] + values[start:start + size] * (about["high"] - about["low"]) / 255
        half = (about["high"] - about["low"]) / 255 / 2
        np.testing.assert_allclose(found, wanted.ravel(), atol=half + 1e-3 * wanted.max())
        start += size
    assert start == len(values)
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(last["picture"]), np.uint8), 1)
    assert np.abs(picture[..., ::-1] - 255 * made[9].image).mean() < 3


def test_patients_are_not_named(run_folder, page, tmp_path):
    assert "SECRET" not in page
    assert "1.2.840" not in page
    assert "/data/set" not in page
    assert "patient 1" in data_of(page)["patientNames"]
    named = report(run_folder, tmp_path, patients=True)
    assert "SECRET-3" in data_of(named)["patientNames"]
    assert "1.2.840" not in named


def test_who_shares_a_patient():
    rows = [ScoreRow("a", patient="p"), ScoreRow("b", patient="p", study="s"),
            ScoreRow("c", study="s"), ScoreRow("d", study="s", series="t"),
            ScoreRow("e", series="t"), ScoreRow("f", frame=0), ScoreRow("f", frame=1),
            ScoreRow("g"), ScoreRow("h")]
    numbers, names = number_patients(rows, named=False)
    assert numbers == [0, 0, 1, 1, 2, 3, 3, 4, 5]
    assert names == ["patient 1", "patient 2", "patient 3", "patient 4", None, None]
    assert number_patients(rows, named=True)[1][:2] == ["p", "patient 2"]


def test_the_most_and_the_least_anomalous(run_folder, tmp_path):
    rows = [ScoreRow(str(i), score=score) for i, score in enumerate([3.0, 1, 4, 1, 5, 9, 2, 6])]
    assert choose_images(rows, 8) == [*range(8)]
    assert choose_images(rows, 5) == [1, 3, 4, 5, 7]
    page = report(run_folder, tmp_path, images=41)
    scores = np.array(data_of(page)["scores"])
    found = {item["at"] for item in data_of(page)["items"]}
    falling = np.argsort(-scores, kind="stable")
    assert len(scores) == 300
    assert found == {*falling[:21].tolist(), *falling[-20:].tolist()}
    assert "the 21 with the highest and the 20 with the lowest scores" in page
    with pytest.raises(InputError, match="images"):
        report(run_folder, tmp_path, images=1)


def test_hostile_texts_are_texts(calibrated, tmp_path):
    folder = write_run(tmp_path / "run", calibrated, make_hostile(make_images(8, slices=0)),
                       "</p><script>alert(5)</script>")
    page = report(folder, tmp_path, patients=True, title="</title><script>alert(6)</script>")
    found = Reader(page)
    assert len(found.all("script")) == 2
    assert found.all("img") == []
    assert not [each for each in found.all("svg") if "onload" in each]
    assert "</title><script>alert(6)</script>" in found.text("title")
    assert "<b>no</b>" in found.text("bdi")
    assert "</table><script>alert(4)</script>.png" in found.text("bdi")
    data = data_of(page)
    assert [item["name"] for item in data["items"]] == [show_text(name) for name in HOSTILE]
    assert data["groupNames"] == [HOSTILE_GROUP]
    assert data["patientNames"] == [HOSTILE_PATIENT]


def test_an_evaluation_is_shown(run_folder, tmp_path, calibrated):
    folder = write_run(tmp_path / "run", calibrated, chain(make_images(30), add_failures()))
    evaluation = make_evaluation(folder)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    page = report(folder, tmp_path)
    assert data_of(page)["threshold"] == 0.25
    text = Reader(page).text
    part = evaluation["parts"][0]
    area = part["figures"]["auroc"]["value"]
    assert f"AUROC {area:.3f} (0.500 to 0.950)" in text("figcaption")
    assert "best F1, chosen on the test set: optimistic" in text("bdi")
    assert (f"{part['normal']} normal and {part['anomalous']} anomalous images, 9 patients or files"
            in text("caption"))
    assert "x.png: a remark" in text("bdi")
    assert "/data/set" not in page


def test_without_labels_calibration_or_images(small_file, tmp_path):
    with scrd_fast.load_engine(small_file) as engine:
        folder = write_run(tmp_path / "run", engine, make_images(5, labelled=False, slices=0))
        page = report(folder, tmp_path)
        assert data_of(page)["threshold"] is None
        assert 'id="confusion"' not in page
        assert "not calibrated" in page
        empty = write_run(tmp_path / "empty", engine, add_failures())
        assert data_of(report(empty, tmp_path))["items"] == []
        with collect_run(tmp_path / "bare", engine, "scores alone") as add:
            add(ScoreRow("x", score=0.5), None, None, None)
        item = data_of(report(tmp_path / "bare", tmp_path))["items"][0]
        assert (item["picture"], item["map"], item["distances"]) == (None, None, None)


@pytest.mark.slow
def test_a_thousand_images_are_below_25_mb(calibrated, tmp_path):
    """An eighth of them, of noise, which cannot be compressed: no image can take more."""
    rng = np.random.default_rng(0)
    with collect_run(tmp_path / "run", calibrated, "noise") as add:
        noise = [rng.integers(0, 256, (192, 192, 3), dtype=np.uint8) for _ in range(4)]
        for i in range(125):
            sides = (128, 64, 32) if i % 2 else (64, 32, 16)
            add(ScoreRow(f"/some/folder/with/a/name/{i:08}.png", patient=str(i // 3),
                         label=i % 2, score=i / 125, p_value=0.5, scale_weights=(0.2, 0.3, 0.5)),
                noise[i % 4], rng.random((64, 64), np.float32),
                tuple(rng.random((side, side), np.float32) for side in sides))
    write_report(read_run(tmp_path / "run"), tmp_path / "r.html")
    size = (tmp_path / "r.html").stat().st_size
    assert size < 25e6 / 8
    assert size > 20e6 / 8  # else these were no worst case


def test_scripts_are_readable_and_end_no_element():
    folder = Path(scrd_fast.__file__).parent / "report" / "page"
    assert {path.name for path in folder.glob("*.js")} == set(SCRIPTS)
    for path in folder.iterdir():
        text = path.read_text()
        assert len(text.splitlines()) <= 350
        if path.suffix == ".js":
            assert "</" not in text
            assert "<!--" not in text
            assert max(map(len, text.splitlines())) <= 100


def test_values_are_escaped_by_default():
    page = render_page("build.html", title="<&>\"'", summary="\udce9", tables=[], plots=[])
    assert "<bdi>&lt;&amp;&gt;&#34;&#39;</bdi>" in page


def test_the_verb(run_folder, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert main("report", run_folder, out, "--images", 10) == 0
    assert re.fullmatch(rf"{out}: 10 images, 0\.\d MB\n", capsys.readouterr().out)
    assert "SECRET" not in out.read_text()
    assert main("report", run_folder, out, "--patients") == 0
    assert "SECRET" in out.read_text()
    capsys.readouterr()
    assert main("report", tmp_path, out) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/run.json: expected a run;")
    assert main("report", run_folder, run_folder / "run.json") == 2
    assert "another file than those that are read" in capsys.readouterr().err


@pytest.mark.slow
def test_it_is_of_the_half_that_scores(run_folder, tmp_path):
    done = base_only("report", run_folder, tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.html").exists()


def test_errors(run_folder, tmp_path):
    run = read_run(run_folder)
    with pytest.raises(OutputError):
        write_report(run, tmp_path)
    with pytest.raises(DataError):
        write_report(replace(run, folder=tmp_path), tmp_path / "r.html")


def test_without_jinja2(run_folder, tmp_path):
    code = ("import sys; sys.modules['jinja2'] = None\n"
            "from scrd_fast.cli import main; main()")
    done = subprocess.run([sys.executable, "-c", code, "report", str(run_folder),
                           str(tmp_path / "r.html")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == ("error: report: expected jinja2, got none;"
                           " pip install 'scrd-fast[report]'\n")
    assert list(tmp_path.iterdir()) == []


def test_files_of_two_roots_are_below_the_folders_of_each():
    """Where relative and absolute paths were named no folder of a person's shows."""
    rows = [ScoreRow(image) for image in ("/home/DOE_JANE/a/1.png", "/home/DOE_JANE/b/2.png",
                                          "mine/3.png")]
    names = Names(rows)
    assert [names.of(row) for row in rows] == ["a/1.png", "b/2.png", "3.png"]
    assert names.clean("/home/DOE_JANE/a/1.png: cut; mine/3.png: cut") == "a/1.png: cut; 3.png: cut"
