"""The folder of a run: what was added comes back, memory and pictures are small, and what is
damaged or foreign is one error."""

import hashlib
import json
import zipfile
from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest

import scrd_fast
from scrd_fast.engine.engine_file import manifest_digest
from scrd_fast.errors import DataError
from scrd_fast.report.rows import ScoreRow
from scrd_fast.report.run_folder import (
    MAP_SIDE,
    MOST_BYTES,
    PICTURE_SIDE,
    collect_run,
    read_run,
    shrink_picture,
)
from tests.report.generated import make_evaluation, make_images, write_run

FILES = ["gallery.zip", "run.json", "scores.jsonl"]


def damage(folder, name, change):
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


@pytest.fixture
def small_run(calibrated, tmp_path):
    return write_run(tmp_path / "run", calibrated, make_images(4))


def test_what_was_added_comes_back(calibrated, tmp_path):
    made = list(make_images(14))
    write_run(tmp_path, calibrated, iter(made), "Grüße \udce9")
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    run = read_run(str(tmp_path))
    assert run.rows == tuple(each.row for each in made)
    assert run.manifest == calibrated.manifest
    assert run.evaluation is None
    record = run.record
    assert (record.engine, record.images, record.data) == ("m.scrd", 14, "Grüße \udce9")
    assert record.engine_digest == manifest_digest(calibrated.manifest)
    assert record.scrd_fast == scrd_fast.__version__
    assert record.scale == calibrated.decisions.maps.scale
    with run.open_gallery() as gallery:
        for i, each in enumerate(made):
            np.testing.assert_allclose(gallery.map(i), each.map, rtol=2**-10)
            for found, given in zip(gallery.distances(i), each.distances, strict=True):
                np.testing.assert_allclose(found, given, rtol=2**-10)
            picture = cv2.imdecode(np.frombuffer(gallery.picture(i), np.uint8), cv2.IMREAD_COLOR)
            colour = each.image if each.image.ndim == 3 else np.stack([each.image] * 3, axis=2)
            assert picture.shape == colour.shape  # small already
            assert np.abs(picture[..., ::-1] - 255 * colour).mean() < 3


@pytest.mark.parametrize(("shape", "dtype"), [
    ((700, 300), np.uint8), ((300, 700, 3), np.uint16), ((1, 2000), np.uint8),
    ((500, 500, 3), np.float32), ((5, 4), np.uint8)])
def test_pictures_are_small(calibrated, tmp_path, shape, dtype):
    """Noise, which nothing compresses."""
    noise = np.random.default_rng(0).random(shape)
    image = (noise if dtype == np.float32 else noise * np.iinfo(dtype).max).astype(dtype)
    heat = np.random.default_rng(1).random((256, 256)).astype(np.float32)
    with collect_run(tmp_path, calibrated, "noise") as add:
        add(ScoreRow("x", score=1.0), image, heat, None)
    with read_run(tmp_path).open_gallery() as gallery:
        data, small = gallery.picture(0), gallery.map(0)
        assert gallery.distances(0) is None
    assert len(data) <= MOST_BYTES
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert max(picture.shape[:2]) <= PICTURE_SIDE
    assert picture.shape[0] / picture.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.2, abs=1)
    assert small.shape == (MAP_SIDE, MAP_SIDE)
    np.testing.assert_allclose(small, heat.reshape(64, 4, 64, 4).mean((1, 3)), rtol=2e-3)


def test_some_of_it_may_be_missing(calibrated, tmp_path):
    made = next(make_images(1))
    with collect_run(tmp_path, calibrated, "parts") as add:
        add(made.row, made.image, None, None)
        add(made.row, None, made.map, None)
        add(made.row, None, None, made.distances)
    with read_run(tmp_path).open_gallery() as gallery:
        assert [gallery.picture(i) is None for i in range(4)] == [False, True, True, True]
        assert [gallery.map(i) is None for i in range(4)] == [True, False, True, True]
        assert [gallery.distances(i) is None for i in range(4)] == [True, True, False, True]


def test_a_smooth_picture_keeps_its_size():
    image = np.tile(np.arange(192, dtype=np.uint8), (150, 1))
    assert cv2.imdecode(np.frombuffer(shrink_picture(image), np.uint8), 0).shape == (150, 192)


def test_colours_without_a_calibration(small_file, tmp_path):
    """From the median to the 99.9th percentile of the run's own maps."""
    made = list(make_images(20))
    with scrd_fast.load_engine(small_file) as engine:
        write_run(tmp_path / "run", engine, iter(made))
        values = np.concatenate([each.map.ravel() for each in made])
        assert read_run(tmp_path / "run").record.scale == pytest.approx(
            np.quantile(values, [0.5, 0.999]), rel=0.01)
        write_run(tmp_path / "empty", engine, iter(()))
        assert read_run(tmp_path / "empty").record.scale == (0, 1)
        assert read_run(tmp_path / "empty").rows == ()


def test_a_failure_leaves_what_was_there(calibrated, small_run):
    before = {path.name: path.read_bytes() for path in small_run.iterdir()}
    def fail():
        yield next(make_images(1))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_run(small_run, calibrated, fail())
    assert {path.name: path.read_bytes() for path in small_run.iterdir()} == before


def test_a_full_disk_is_one_error(run_with_file_limit, small_file, tmp_path):
    code = f"""
import numpy as np, scrd_fast
from pathlib import Path
from scrd_fast.errors import OutputError
from scrd_fast.report.rows import ScoreRow
from scrd_fast.report.run_folder import collect_run
engine = scrd_fast.load_engine({str(small_file)!r})
def fill():
    with collect_run(Path({str(tmp_path / "run")!r}), engine, "x") as add:
        for _ in range(100): add(ScoreRow("x", score=1.0), None, np.ones((64, 64), "f4"), None)

try: fill()
except OutputError as error: print(error)
"""
    assert run_with_file_limit(code).startswith(str(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(("change", "words"), [
    (lambda values: values.pop("manifest"), "format"),
    (lambda values: values.update(format=99), "run.format: expected 1, got 99"),
    (lambda values: values.update(scale=[2, 1]), "two rising numbers"),
    (lambda values: values.update(scale=[0, "<b>"]), r"run.scale\[1\]"),
    (lambda values: values.update(more=1), "unknown"),
    (lambda values: values.pop("date"), "date"),
    (lambda values: values["manifest"].update(precision=3), "manifest.precision"),
    (lambda values: values.update(scores_digest=""), "expected the 4 rows"),
])
def test_a_damaged_record(small_run, change, words):
    damage(small_run, "run.json", change)
    with pytest.raises(DataError, match=words) as raised:
        read_run(small_run)
    assert str(raised.value).startswith(str(small_run))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 99999, b"nonsense", None])
@pytest.mark.parametrize("name", FILES)
def test_foreign_files(small_run, name, content):
    if content is None:
        (small_run / name).unlink()
    else:
        (small_run / name).write_bytes(content)
    with pytest.raises(DataError) as raised, read_run(small_run).open_gallery():
        pass
    assert str(raised.value).startswith(str(small_run / name))
    assert "\n" not in str(raised.value)


def picture(height, width):
    return cv2.imencode(".webp", np.full((height, width), 9, np.uint8),
                        [cv2.IMWRITE_WEBP_QUALITY, 50])[1].tobytes()


def rewrite(folder, name, content, compression=zipfile.ZIP_STORED):
    """The gallery with other content in the place of a member."""
    path = folder / "gallery.zip"
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for each, data in (members | {name: content}).items():
            archive.writestr(each, data)
    vouch(folder)


def vouch(folder):
    """As somebody would who wants the other gallery to be taken."""
    digest = hashlib.sha256((folder / "gallery.zip").read_bytes()).hexdigest()
    damage(folder, "run.json", lambda values: values.update(gallery_digest=digest))


@pytest.mark.parametrize(("name", "content"), [
    ("000000.webp", b"<svg onload=alert(1)>"), ("000000.webp", bytes(MOST_BYTES + 1)),
    ("000000.webp", picture(193, 4)), ("000000.webp", picture(4, 4)[:40]), ("000000.webp", b""),
    ("000000.f16", b""), ("000000.f16", b"\2\0\2\0" + bytes(7)),
    ("000000.f16", b"\2\0\2\0" + bytes(8)), ("000000.f16", b"\2\0\2\0" + bytes(21)),
    ("000000.f16", b"\x41\0\2\0" + bytes(260 + 12)),  # 65 x 2
    ("000000.f16", b"\0\0\0\0\x01\x04\2\0" + bytes(4100 + 8)),  # 1025 x 2
    ("000000.f16", b"\2\0\2\0" + b"\x00\x7e" * 4 + bytes(12)),  # NaN
    ("000000.f16", b"\xff" * 9000), ("000000.f16", bytes(7_000_000))])
def test_a_foreign_gallery(small_run, name, content):
    rewrite(small_run, name, content)
    with read_run(small_run).open_gallery() as gallery:
        for call in [gallery.picture] if name.endswith("webp") else [
                gallery.map, gallery.distances]:
            with pytest.raises(DataError, match=name):
                call(0)


def test_compressed_members_are_refused(small_run):
    rewrite(small_run, "000000.f16", bytes(4096), zipfile.ZIP_DEFLATED)
    with read_run(small_run).open_gallery() as gallery, pytest.raises(DataError, match="uncomp"):
        gallery.map(0)


def test_a_damaged_gallery(small_run):
    path = small_run / "gallery.zip"
    data = bytearray(path.read_bytes())
    data[300] ^= 1  # within the first picture
    path.write_bytes(data)
    with pytest.raises(DataError, match="expected the gallery of this run, got another file"), (
            read_run(small_run).open_gallery()):
        pass
    vouch(small_run)
    with read_run(small_run).open_gallery() as gallery, pytest.raises(DataError, match="damaged"):
        gallery.picture(0)


def test_an_older_engine(calibrated, small_run):
    """A run outlives the format of the manifest that it was made with."""
    def change(values):
        del values["manifest"]["training"]
        del values["manifest"]["calibration"]["maps"]
        values["manifest"]["format"] = 3

    damage(small_run, "run.json", change)
    decisions = replace(calibrated.decisions, maps=None)
    assert read_run(small_run).manifest == replace(calibrated.manifest, calibration=decisions)


@pytest.fixture
def evaluated(calibrated, tmp_path):
    folder = write_run(tmp_path / "evaluated", calibrated, make_images(12))
    (folder / "evaluation.json").write_text(json.dumps(make_evaluation(folder)))
    return folder


def test_an_evaluation(evaluated):
    found = read_run(evaluated).evaluation
    assert found.threshold.value == 0.25
    assert found.parts[0].figures["auroc"].interval.high == 0.95
    assert found.pixels["aupro"].interval is None


@pytest.mark.parametrize("images", [
    make_images(12, 1), make_images(11), make_images(12, labelled=False)])
def test_an_evaluation_of_other_scores(evaluated, calibrated, images):
    write_run(evaluated, calibrated, images)
    with pytest.raises(DataError, match=r"evaluation.json: .* one of others"):
        read_run(evaluated)


@pytest.mark.parametrize("change", [
    lambda values: values.pop("parts"), lambda values: values.update(parts=[1]),
    lambda values: values["threshold"].update(value=float("nan")),
    lambda values: values["parts"][0]["figures"]["auroc"].update(value="<b>")])
def test_a_damaged_evaluation(evaluated, change):
    damage(evaluated, "evaluation.json", change)
    with pytest.raises(DataError, match="expected an evaluation: ") as raised:
        read_run(evaluated)
    assert str(raised.value).startswith(str(evaluated / "evaluation.json"))


def test_rows_are_those_of_the_table(small_run):
    first = next(islice(make_images(1), 1)).row
    line = (small_run / "scores.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["score"] == first.score
