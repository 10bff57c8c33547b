"""Files one after the other: how far ahead they are read, and when a series is scaled."""

import itertools
import re
import threading
import tracemalloc
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")

import scrd_fast
from scrd_fast.data.decode import ahead
from scrd_fast.data.decode.ahead import AHEAD, THREADS, decode_ahead
from scrd_fast.data.decode.image import DecodedImage, Source
from scrd_fast.data.decode.read import FileRead
from scrd_fast.spec import DecodingRule
from tests.data.decode.dicom_by_hand import OWN, dicom, save

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
PERCENTILE = DecodingRule("percentile", percentiles=(1.0, 98.0))


@pytest.fixture
def pictures(tmp_path):
    """40 pictures of one value each, which is their place."""
    for i in range(40):
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), np.full((3, 4), i, np.uint8))
    return sorted(tmp_path.glob("*.png"))


def values(decoded):
    return [int(each.images[0].pixels[0, 0]) for each in decoded]


def write_series(folder, name, stored, **elements):
    """A slice for each array of stored values, in the file NAME and its number."""
    return [save(dicom(each, SeriesInstanceUID=f"1.2.{ord(name)}", InstanceNumber=i, **elements),
                 folder / f"{name}{i}") for i, each in enumerate(stored)]


def scaled(stored, whole, percentiles=PERCENTILE.percentiles):
    low, high = np.percentile(np.asarray(whole, np.float64), percentiles)
    return np.clip((stored - low) / (high - low), 0, 1)


# --- order and memory -----------------------------------------------------------------------

def test_order_is_kept_whichever_file_takes_longest(pictures, monkeypatch):
    """Every THREADS-th is read when the one behind it has been."""
    read_file, done = ahead.read_file, {path: threading.Event() for path in pictures}

    def read_late(path, rule):
        place = pictures.index(path)
        if place % THREADS == 0 and THREADS > 1:
            assert done[pictures[place + 1]].wait(30)
        read = read_file(path, rule)
        done[path].set()
        return read

    monkeypatch.setattr(ahead, "read_file", read_late)
    assert values(decode_ahead(pictures, DecodingRule())) == list(range(40))


def test_no_more_is_taken_than_what_is_read_ahead(pictures):
    taken = 0

    def take():
        nonlocal taken
        for taken, path in enumerate(pictures, start=1):  # noqa: B007
            yield path

    for given, _ in enumerate(decode_ahead(take(), DecodingRule()), start=1):
        assert taken <= given + AHEAD
    assert (given, taken) == (40, 40)


def test_memory_is_that_of_a_few_files(monkeypatch):
    """3000 files of 200 kB."""
    monkeypatch.setattr(ahead, "read_file", lambda path, rule: FileRead(
        path, (DecodedImage(np.zeros(200_000, np.uint8), None, Source(path)),)))
    paths = (Path(f"{i}") for i in range(3000))
    tracemalloc.start()
    try:
        for _ in decode_ahead(paths, DecodingRule()):
            pass
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < (AHEAD + THREADS + 3) * 200_000 + 1e6


def test_only_one_series_is_in_memory(tmp_path, monkeypatch):
    """Of 30 series of two slices the one that is given out, and what is read ahead of it."""
    files = [save(dicom(RAMP + np.uint16(i), SeriesInstanceUID=f"1.2.{i // 2}"),
                  tmp_path / f"{i:02d}") for i in range(60)]
    read = []
    read_file = ahead.read_file
    monkeypatch.setattr(ahead, "read_file", lambda path, rule: (
        read.append(path) or read_file(path, rule)))
    for given, decoded in enumerate(decode_ahead(files, PERCENTILE), start=1):
        assert decoded.path == files[given - 1]
        assert len(read) <= given + AHEAD + 2
    assert len(read) == 60


# --- what is no file ---------------------------------------------------------------------------

def test_images_pass_at_once_and_in_order(pictures):
    """An endless stream of images is no reason to wait; behind files they keep their place."""
    count = itertools.count()
    endless = decode_ahead(count, DecodingRule())
    assert [next(endless) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert next(count) == 5
    image = np.zeros((2, 2))
    given = [image, pictures[0], "text", pictures[1], pictures[2], None, *pictures[3:9], image]
    got = list(decode_ahead(given, DecodingRule()))
    assert len(got) == len(given)
    for one, other in zip(given, got, strict=True):
        assert getattr(other, "path", other) is one


def test_errors_stand_in_their_place(pictures, tmp_path):
    pictures[3].write_bytes(b"")
    pictures[7].unlink()
    given = [*pictures[:9], tmp_path, OWN / "rtplan.dcm", pictures[9]]
    got = list(decode_ahead(given, DecodingRule()))
    assert [each.path for each in got] == given
    wrong = {i: each.error for i, each in enumerate(got) if each.error}
    assert [*wrong] == [3, 7, 9, 10]
    for i, error in wrong.items():
        assert error.startswith(f"{given[i]}: ")
        assert got[i].images == ()


# --- a stream that ends early --------------------------------------------------------------------

def decoding_threads():
    return [each for each in threading.enumerate() if each.name.startswith("decode")]


@pytest.mark.parametrize("taken", [0, 1, 20, 40])
def test_a_stream_that_is_left_leaves_no_thread(pictures, taken):
    before = decoding_threads()
    stream = decode_ahead(pictures, DecodingRule())
    assert len(list(itertools.islice(stream, taken))) == taken
    del stream
    assert decoding_threads() == before


def test_what_the_iterable_raises_comes_out(pictures):
    def break_off():
        yield from pictures[:20]
        raise KeyError("gone")

    before = decoding_threads()
    with pytest.raises(KeyError, match="gone"):
        list(decode_ahead(break_off(), DecodingRule()))
    assert decoding_threads() == before


# --- series ---------------------------------------------------------------------------------------

def test_a_series_is_scaled_by_all_of_its_pixels_among_others(tmp_path, pictures):
    rng = np.random.default_rng(0)
    stored = {name: rng.integers(0, top, (count, 16, 16)).astype(np.uint16)
              for name, top, count in (("a", 4000, 3), ("b", 60000, 2), ("c", 90, 1))}
    files = {name: write_series(tmp_path, name, each) for name, each in stored.items()}
    given = [pictures[5], *files["a"], pictures[6], *files["b"], *files["c"], RAMP, pictures[7]]
    got = list(decode_ahead(given, PERCENTILE))
    assert [getattr(each, "path", None) for each in got] == [
        None if each is RAMP else each for each in given]
    by_path = {each.path: each for each in got if each is not RAMP}
    for name, paths in files.items():
        for path, each in zip(paths, stored[name], strict=True):
            (image,) = by_path[path].images
            assert image.pixels.dtype == np.float32
            np.testing.assert_allclose(image.pixels, scaled(each, stored[name]), atol=1e-6)
    assert values(by_path[path] for path in pictures[5:8]) == [5, 6, 7]


def test_percentiles_are_taken_of_units_and_of_what_is_no_padding(tmp_path):
    """Slices whose slopes differ, as PET has them."""
    stored = [RAMP, RAMP // 2, RAMP // 3]
    slopes = [0.5, 2.0, 7.25]
    files = [save(dicom(each, SeriesInstanceUID="1.2", RescaleSlope=slope, RescaleIntercept=-9),
                  tmp_path / f"{i}") for i, (each, slope) in enumerate(zip(stored, slopes,
                                                                           strict=True))]
    data = dicom(RAMP, SeriesInstanceUID="1.2", RescaleSlope=1, RescaleIntercept=0)
    data.add_new("PixelPaddingValue", "US", 0)
    data.add_new("PixelPaddingRangeLimit", "US", 2000)
    files.append(save(data, tmp_path / "padded"))
    units = [each * slope - 9 for each, slope in zip(stored, slopes, strict=True)]
    whole = np.concatenate([*(each.ravel() for each in units), RAMP[RAMP > 2000].astype(float)])
    got = [each.images[0].pixels for each in decode_ahead(files, PERCENTILE)]
    for pixels, each in zip(got, units, strict=False):
        np.testing.assert_allclose(pixels, scaled(each, whole), atol=1e-6)
    np.testing.assert_allclose(got[3], np.where(RAMP > 2000, scaled(RAMP, whole), 0), atol=1e-6)


def test_a_file_that_cannot_be_read_does_not_part_its_series(tmp_path):
    stored = [RAMP + np.uint16(1000 * i) for i in range(5)]
    files = write_series(tmp_path, "a", stored)
    whole = files[2].read_bytes()
    files[2].write_bytes(whole[:-200])
    (tmp_path / "gone").write_bytes(b"")
    given = [*files[:3], tmp_path / "gone", *files[3:]]
    got = list(decode_ahead(given, PERCENTILE))
    assert [each.path for each in got] == given
    assert [each.error is None for each in got] == [True, True, False, False, True, True]
    rest = [stored[i] for i in (0, 1, 3, 4)]
    for each, expected in zip([each for each in got if not each.error], rest, strict=True):
        np.testing.assert_allclose(each.images[0].pixels, scaled(expected, rest), atol=1e-6)


def test_slices_with_a_window_do_not_part_those_without(tmp_path):
    """Which are scaled together; one warning counts them."""
    stored = [RAMP, RAMP, RAMP + np.uint16(2000)]
    files = write_series(tmp_path, "a", stored)
    windowed = save(dicom(RAMP, SeriesInstanceUID="1.2.97", WindowCenter=100, WindowWidth=200),
                    tmp_path / "windowed")
    given = [files[0], windowed, *files[1:]]
    got = list(decode_ahead(given, DecodingRule()))
    assert [(each.path, each.error) for each in got] == [(path, None) for path in given]
    assert [each.remarks for each in got[1:]] == [(), (), ()]
    (remark,) = got[0].remarks
    assert remark.startswith(f"{files[0]} and 2 more name no window: scaled by the percentiles")
    for each, expected in zip([got[0], *got[2:]], stored, strict=True):
        np.testing.assert_allclose(each.images[0].pixels,
                                   scaled(expected, stored, (0.5, 99.5)), atol=1e-6)
    with pytest.warns(UserWarning, match=re.escape(remark)) as caught:
        scrd_fast.read_images(given)
    assert caught[0].filename == __file__


def test_a_series_that_comes_again_says_what_to_do(tmp_path, pictures):
    a, b = (write_series(tmp_path, name, [RAMP, RAMP]) for name in "ab")
    got = list(decode_ahead([a[0], b[0], a[1], pictures[0], b[1]], PERCENTILE))
    assert [each.error is None for each in got] == [True, True, False, True, False]
    for place, path in ((2, a[1]), (4, b[1])):
        assert got[place].error == (
            f"{path}: expected the files of a series one after the other, as percentiles are taken"
            " of all of them, got others in between; give their folder")
    assert not any(each.error for each in decode_ahead([a[0], b[0], a[1]], DecodingRule(
        "window", (0.0, 100.0))))


def test_a_series_that_cannot_be_scaled_is_all_bad(tmp_path, pictures):
    flat = np.full((8, 8), 7, np.uint16)
    files = write_series(tmp_path, "a", [flat, flat])
    got = list(decode_ahead([*files, pictures[0]], PERCENTILE))
    assert [each.error for each in got] == [
        *(f"{path}: expected pixels of its series that differ, got percentiles 1 and 98 that are"
          " both 7" for path in files), None]
    assert got[2].images


def test_files_without_a_series_are_each_their_own(tmp_path):
    files = []
    for i, each in enumerate((RAMP, RAMP + np.uint16(9000), RAMP)):
        data = dicom(each)
        del data.SeriesInstanceUID
        files.append(save(data, tmp_path / f"{i}"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in decode_ahead(files, PERCENTILE):
            np.testing.assert_allclose(each.images[0].pixels, scaled(RAMP, RAMP), atol=1e-6)


def test_frames_of_one_file_are_a_series(tmp_path):
    frames = np.stack([RAMP, RAMP + np.uint16(5000)])
    path = save(dicom(frames, NumberOfFrames=2), tmp_path / "a")
    (decoded,) = decode_ahead([path], PERCENTILE)
    for image, frame in zip(decoded.images, frames, strict=True):
        np.testing.assert_allclose(image.pixels, scaled(frame, frames), atol=1e-6)
