"""Images one after the other: their order, what is bad among them, and how many are held."""

import itertools

import cv2
import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.data.decode import ahead
from scrd_fast.data.decode.image import DecodedImage, Source
from scrd_fast.data.decode.read import FileRead
from scrd_fast.data.to_score import ToScore
from scrd_fast.engine import stream as streaming
from scrd_fast.engine.engine import Result
from scrd_fast.engine.stream import BATCH, IN_FLIGHT
from scrd_fast.errors import InputError, NotFiniteError
from scrd_fast.report.overlays import collect_overlays, overlay
from scrd_fast.report.scores import draw_overlay, score_files
from scrd_fast.spec import ScoringSpec
from tests.support.models import pictures
from tests.support.pictures import read_image


@pytest.fixture(scope="module")
def engine(small_file):
    with scrd_fast.load_engine(small_file) as engine:
        yield engine


@pytest.fixture
def files(tmp_path):
    """24 pictures, of two sizes in turn."""
    for i, image in enumerate(pictures(24, 80)):
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), image[: 80 if i % 2 else 60])
    return sorted(tmp_path.glob("*.png"))


def check(items, whole: Result) -> None:
    items = list(items)
    assert [item.index for item in items] == list(range(len(whole.scores)))
    np.testing.assert_array_equal([item.score for item in items], whole.scores)
    np.testing.assert_array_equal(np.stack([item.scale_weights for item in items]),
                                  whole.scale_weights)
    np.testing.assert_array_equal(np.stack([item.map for item in items]), whole.maps)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 7, 8, 9, 24])
def test_files_arrays_tensors_and_generators(engine, files, n):
    check(engine.stream(files[:n]), engine.score(files[:n]))
    images = pictures(n, 70)
    whole = engine.score(list(images))  # in parts of the same size
    if n <= BATCH:
        check(engine.stream(images), whole)
        check(engine.stream(torch.from_numpy(images)), whole)
        check(engine.stream(image for image in images), whole)
    else:
        scores = [item.score for item in engine.stream(images)]
        np.testing.assert_allclose(scores, whole.scores, rtol=1e-6)
    assert all(item.map is None for item in engine.stream(images, maps=False))


def test_what_is_bad_is_named_and_the_rest_is_scored(engine, files, tmp_path):
    (tmp_path / "broken.png").write_bytes(files[0].read_bytes()[:99])
    given = [files[0], tmp_path / "broken.png", files[1], tmp_path / "gone.png", str(files[2])]
    items = list(engine.stream(given))
    assert [item.error is None for item in items] == [True, False, True, False, True]
    assert items[1].error.startswith(f"{tmp_path / 'broken.png'}: ")
    assert items[3].image is None
    assert np.isnan(items[3].score)
    assert np.isnan(items[3].map).all()
    assert [item.path for item in items] == [*given[:4], files[2]]
    alone = engine.score(files[:3]).scores
    np.testing.assert_allclose([items[i].score for i in (0, 2, 4)], alone, rtol=1e-6)


def test_images_that_do_not_fit(engine):
    good = pictures(1, 64)[0]
    with pytest.raises(InputError, match=r"^images\[1\]: expected"):
        list(engine.stream([good, good[..., :2]]))
    with pytest.raises(InputError, match=r"^images\[9\]: expected"):
        list(engine.stream([good] * 9 + [good[..., :2]]))
    with pytest.raises(InputError, match=r"^images: expected dtype uint8, uint16 or float32"):
        list(engine.stream(np.zeros((3, 64, 64), np.int64)))
    with pytest.raises(NotFiniteError):
        list(engine.stream([good, np.full((64, 64), np.nan, np.float32)]))
    with pytest.raises(InputError, match=r"^images: expected images or paths, got one path; write "
                                         r"stream\(\['a.png'\]\)$"):
        next(engine.stream("a.png"))
    with pytest.raises(InputError, match=r"^images: expected an array, images or paths, got int$"):
        next(engine.stream(3))
    assert list(engine.stream([])) == []


def test_the_network_works_while_files_are_read(engine, files, monkeypatch):
    """Each file is read once, and two batches are on their way, never more."""
    under_way, most, read = 0, 0, []
    submit, read_file = engine.submit, ahead.read_file

    def submitted(batch, **wanted):
        nonlocal under_way, most
        pending = submit(batch, **wanted)
        under_way += 1
        most = max(most, under_way)
        result = pending.result

        def collected(timeout=None):
            nonlocal under_way
            under_way -= 1
            return result(timeout)

        pending.result = collected
        return pending

    monkeypatch.setattr(engine, "submit", submitted)
    monkeypatch.setattr(ahead, "read_file", lambda path, rule: (
        read.append(path) or read_file(path, rule)))
    assert len(list(engine.stream(files))) == 24
    assert sorted(read) == files
    assert (under_way, most) == (0, IN_FLIGHT)


class Counted:
    """The part of an engine that a stream needs; it scores nothing."""

    spec, decisions = ScoringSpec(input_size=64), None

    def submit(self, batch, *, maps, distances):
        n = len(batch)
        self.last = Result(np.zeros(n, np.float32), None, np.zeros((n, 3), np.float32))
        return self

    def result(self):
        return self.last


@pytest.mark.slow
def test_a_hundred_thousand_files_need_the_memory_of_a_few(monkeypatch):
    read = itertools.count()
    monkeypatch.setattr(ahead, "read_file", lambda path, rule: FileRead(
        path, (DecodedImage(next(read) or 1, None, Source(path)),)))
    paths = (f"{i}.png" for i in range(100_000))
    seen = -1
    for seen, item in enumerate(streaming.stream(Counted(), paths, maps=False)):
        assert item.index == seen
        assert item.image - seen < 1 + IN_FLIGHT * BATCH + ahead.AHEAD + ahead.THREADS
    assert seen == 99_999


@pytest.mark.slow
def test_overlays_of_all_files_have_one_scale(engine, files, tmp_path, monkeypatch):
    """And nothing is read twice for them."""
    read, read_file = [], ahead.read_file
    monkeypatch.setattr(ahead, "read_file", lambda path, rule: (
        read.append(path) or read_file(path, rule)))
    out = tmp_path / "overlays"
    rows = []
    with collect_overlays(out) as drawn:
        assert score_files(engine, ToScore(files, {}, {}), rows.append,
                           take=lambda row, item: draw_overlay(drawn, item)) == {}
    assert [row.image for row in rows] == list(map(str, files))
    assert sorted(read) == files
    maps = engine.score(files).maps
    low, high = np.quantile(maps, [0.5, 0.999])
    for part in np.split(maps, 3):  # the colours of a part alone would be others
        assert abs(np.quantile(part, 0.5) - low) > 0.02 * (high - low)
    for i, path in enumerate(files):
        drawn = cv2.imread(str(out / f"{i:05d}_{path.stem}.png"))[..., ::-1]
        image = read_image(path)
        np.testing.assert_array_equal(drawn[:, :80], image)
        wanted = overlay(image, maps[i], low, high).astype(int)
        # A step of the table of colours: the scale is known to 1e-5.
        assert np.abs(drawn[:, 80:] - wanted).max() <= 4
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f"{i:05d}_{p.stem}.png" for i, p in enumerate(files))
