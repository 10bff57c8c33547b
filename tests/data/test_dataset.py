"""data.ImageSet: every image is looked at before work is spent on the others."""

import shutil
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.layouts import Item
from scrd_fast.errors import DataError, InputError, OutputError
from scrd_fast.ops.preprocess import to_pixels
from scrd_fast.spec import DecodingRule, ScoringSpec

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 9, 11), dtype=np.uint8)


def write(folder: Path, images: np.ndarray = IMAGES) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        cv2.imwrite(str(folder / f"{i:02d}.png"), image)
    return folder


def cut(folder: Path, *numbers: int) -> None:
    for i in numbers:
        path = folder / f"{i:02d}.png"
        path.write_bytes(path.read_bytes()[:60])


def digest(source) -> str:
    images = ImageSet(source)
    images.check()
    return images.digest


def test_all_bad_files_are_listed(tmp_path):
    folder = write(tmp_path / "a")
    cut(folder, 3, 7)
    with pytest.raises(DataError, match=(
            r"^data: 2 of 30 images cannot be used: .*03\.png: .*; .*07\.png: .*skip_bad=True \(--s"
            )):
        ImageSet(folder).check()
    cut(folder, *range(25))
    with pytest.raises(DataError, match=r"25 of 30 .*19\.png: [^;]*; and 5 more; leave") as error:
        ImageSet(folder).check()
    assert "20.png" not in str(error.value)


def test_bad_files_are_left_out_and_named(tmp_path):
    folder = write(tmp_path / "a")
    cut(folder, 3, 7)
    (folder / "08.png").unlink()
    images = ImageSet([folder / f"{i:02d}.png" for i in range(30)], "validation")
    with pytest.warns(UserWarning, match=(
            r"^validation: 3 of 30 images cannot be used and are left out: .*03.*07.*08\.png")):
        kept = images.check(skip_bad=True)
    others = [i for i in range(30) if i not in (3, 7, 8)]
    assert kept.tolist() == others
    assert len(images) == 27
    assert images.digest == digest(IMAGES[others])
    spec = ScoringSpec(input_size=32)
    assert torch.equal(images.pixels(np.arange(27), spec),
                       ImageSet(IMAGES).pixels(kept, spec))
    cut(folder, *(i for i in others))
    with pytest.raises(DataError, match=r"30 of 30 images cannot be used: (?!.*skip_bad)"):
        ImageSet([folder / f"{i:02d}.png" for i in range(30)]).check(skip_bad=True)


@pytest.mark.parametrize("form", ["array", "tensor", "list"])
def test_bad_images_in_memory_are_listed_or_left_out(form):
    source = (IMAGES / 255).astype(np.float32)
    source[4, 2, 1] = np.nan
    source[9, 0, 0] = np.inf
    given = {"array": source, "tensor": torch.from_numpy(source), "list": list(source)}[form]
    with pytest.raises(InputError, match=(
            r"^data: 2 of 30 .*: data\[4\]: expected finite .*; data\[9\]: expected finite")):
        ImageSet(given).check()
    images = ImageSet(given)
    with pytest.warns(UserWarning, match="2 of 30"):
        images.check(skip_bad=True)
    others = [i for i in range(30) if i not in (4, 9)]
    assert torch.equal(images.pixels(np.arange(28), ScoringSpec(input_size=32)),
                       ImageSet(source[others]).pixels(np.arange(28), ScoringSpec(input_size=32)))


def test_what_is_wrong_with_a_whole_array_is_said_once():
    for source, words in ((IMAGES.astype(np.int64), "dtype uint8, uint16 or float32, got int64"),
                          (np.zeros((5, 8, 8, 4), np.uint8), r"\(N, H, W, 3\), got"),
                          (torch.zeros(5), "got torch.float32")):
        with pytest.raises(InputError, match=rf"^data: expected .*{words}"):
            ImageSet(source).check(skip_bad=True)
    for source in ([], (), np.zeros((0, 8, 8), np.uint8), np.array(3), 5, "x" * 3):
        with pytest.raises((InputError, DataError)):
            ImageSet(source)


def test_lists_may_hold_anything():
    given = [IMAGES[0], IMAGES[1].astype(int), np.zeros((8, 8, 4), np.uint8), None, [[1, 2]],
             np.zeros(3, np.uint8), torch.zeros(8, 9, 3)]
    with pytest.raises(InputError, match=r"5 of 7") as error:
        ImageSet(given).check()
    assert all(f"data[{i}]: expected" in str(error.value) for i in range(1, 6))


def test_the_digest_is_of_pixels_and_order_whatever_holds_them(tmp_path):
    expected = digest(IMAGES)
    folder = write(tmp_path / "a")
    assert digest(folder) == digest(list(IMAGES)) == digest(torch.from_numpy(IMAGES)) == expected
    assert digest(np.asfortranarray(IMAGES)) == digest(folder.rename(tmp_path / "b")) == expected
    assert digest([IMAGES[0], *torch.from_numpy(IMAGES[1:])]) == expected
    assert digest(IMAGES[::-1]) != expected
    assert digest(IMAGES.astype(np.uint16)) != expected
    assert digest(IMAGES.transpose(0, 2, 1)) != expected
    assert digest(IMAGES.reshape(30, 11, 9)) != expected
    changed = IMAGES.copy()
    changed[29, 8, 10] ^= 1
    assert digest(changed) != expected


def test_good_images_are_not_copied_or_told_of():
    images = ImageSet(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.check(skip_bad=True).tolist() == list(range(30))
    assert images._images is IMAGES


def test_a_file_that_is_damaged_later_is_named(tmp_path):
    folder = write(tmp_path / "a")
    images = ImageSet(folder)
    images.check()
    cut(folder, 5)
    with pytest.raises(DataError, match=r"05\.png"):
        images.pixels(np.array([4, 5]), ScoringSpec(input_size=32))


# --- files of several images, and series ----------------------------------------------------

BODY = np.random.default_rng(1).integers(1, 4096, (5, 20, 24)).astype(np.uint16)
RULES = [DecodingRule(), DecodingRule("percentile", percentiles=(1.0, 99.0))]


def write_volume(path: Path, voxels: np.ndarray = BODY) -> Path:
    nibabel = pytest.importorskip("nibabel", reason="nibabel writes NIfTI")
    nibabel.Nifti1Image(voxels.astype(np.int16).transpose(2, 1, 0),
                        np.diag([-1, -1, 2, 1.0])).to_filename(path)
    return path


def write_series(folder: Path, patient: str = "P1", stored: np.ndarray = BODY) -> list[Path]:
    """A file for each slice, named the other way round than they lie."""
    pytest.importorskip("pydicom", reason="pydicom writes DICOM")
    from tests.data.decode.dicom_by_hand import dicom, save

    folder.mkdir()
    return [save(dicom(each, PatientID=patient, SeriesInstanceUID=f"1.2.{len(patient)}",
                       WindowCenter=2000, WindowWidth=3000, ImagePositionPatient=[0, 0, -i],
                       ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), folder / f"{i}.dcm")
            for i, each in enumerate(stored)]


@pytest.fixture
def mixed(tmp_path):
    """A colour frame, pages, a series, a picture, a volume."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_series(folder / "series")
    from tests.data.decode.dicom_by_hand import dicom, save

    save(dicom(np.random.default_rng(2).integers(0, 256, (2, 9, 7, 3)).astype(np.uint8),
               NumberOfFrames=2, PatientID="colour"), folder / "colour.dcm")
    cv2.imwritemulti(str(folder / "pages.tif"), [IMAGES[0], IMAGES[1]])
    cv2.imwrite(str(folder / "z.png"), IMAGES[2])
    write_volume(folder / "volume.nii.gz")
    return folder


@pytest.mark.parametrize("rule", RULES)
def test_every_image_of_a_file_is_one(mixed, rule):
    """At the network's size the pixels are those of the decoded images."""
    spec = ScoringSpec(input_size=32, decoding=rule)
    decoded = scrd_fast.read_images(mixed, rule)
    images = ImageSet(mixed, spec=spec)
    places = images.check()
    assert len(images) == len(decoded) == 2 + 2 + 5 + 5 + 1
    assert places.tolist() == [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 8]
    expected = torch.cat([to_pixels([each.pixels], spec) for each in decoded])
    assert torch.equal(images.pixels(np.arange(15), spec), expected)
    shuffled = np.random.default_rng(0).permutation(15)[:9]
    assert torch.equal(images.pixels(shuffled, spec), expected[shuffled])
    assert list(images.patients) == [each.source.whose for each in decoded]
    tiff, volume = (str(decoded[place].source.path) for place in (2, 9))
    assert list(images.patients) == [
        *["colour"] * 2, *[tiff] * 2, *["P1"] * 5, *[volume] * 5, None]


def test_processes_each_look_at_files_of_several_images(mixed):
    """No other process is asked for what it keeps in a file of its own."""
    spec = ScoringSpec(input_size=32)
    one, other = ImageSet(mixed, spec=spec), ImageSet(mixed, spec=spec)
    one.check(rank=0, world=2)
    other.check(rank=1, world=2)
    assert one.digest == other.digest
    assert torch.equal(one.pixels(np.arange(15), spec), other.pixels(np.arange(15), spec))


def test_a_data_set_tells_patients_where_files_do_not(tmp_path):
    volume, series = write_volume(tmp_path / "a.nii"), write_series(tmp_path / "b")
    cv2.imwrite(str(tmp_path / "c.png"), IMAGES[0])
    items = (Item(volume, patient="one"), *(Item(path) for path in series[:2]),
             Item(series[2], patient="two"), Item(tmp_path / "c.png", patient="three"))
    images = ImageSet(items, spec=ScoringSpec(input_size=32))
    images.check()
    assert list(images.patients) == [*["one"] * 5, "two", "P1", "P1", "three"]
    assert "P1" not in repr(images)


def test_bad_files_of_several_images_are_left_out(mixed):
    """A slice that is cut, a volume that is, and a copy, which is refused by its name."""
    good = ImageSet(mixed, spec=ScoringSpec(input_size=32))
    good.check()
    cut = mixed / "series" / "2.dcm"
    cut.write_bytes(cut.read_bytes()[:-99])
    shutil.copy(mixed / "series" / "0.dcm", mixed / "series" / "copy.dcm")
    volume = mixed / "volume.nii.gz"
    volume.write_bytes(volume.read_bytes()[:-999])
    words = (r"3 of 10 images cannot be used.*: .*2\.dcm: cut.*; .*volume\.nii\.gz: .*;"
             r" .*copy\.dcm: is the object that .*0\.dcm is")
    with pytest.raises(DataError, match=f"^data: {words}.*skip_bad"):
        ImageSet(mixed).check()
    images = ImageSet(mixed, spec=ScoringSpec(input_size=32))
    with pytest.warns(UserWarning, match=words) as caught:
        places = images.check(skip_bad=True)
    assert caught[0].filename == __file__
    assert places.tolist() == [0, 0, 1, 1, 2, 3, 5, 6, 8]
    spec = ScoringSpec(input_size=32)
    assert torch.equal(images.pixels(np.arange(9), spec),
                       good.pixels(np.array([0, 1, 2, 3, 4, 5, 7, 8, 14]), spec))


@pytest.mark.parametrize("rule", RULES)
def test_the_digest_of_volumes_and_series_is_of_what_is_seen(tmp_path, rule):
    def of(source, size: int = 32, rule: DecodingRule = rule) -> str:
        images = ImageSet(source, spec=ScoringSpec(input_size=size, decoding=rule))
        images.check()
        return images.digest

    volume = write_volume(tmp_path / "a.nii.gz")
    expected = of([volume])
    assert of([volume], 64) == expected == of([write_volume(tmp_path / "b.nii")])
    assert of([volume], rule=DecodingRule("window", (0.0, 4000.0))) != expected
    series = write_series(tmp_path / "series")
    found = of(tmp_path / "series")
    shutil.copytree(tmp_path / "series", tmp_path / "other")
    for i in range(5):  # other names in another order
        (tmp_path / "other" / f"{i}.dcm").rename(tmp_path / "other" / f"x{5 - i}")
    assert of(tmp_path / "other") == found
    assert of(series) != found  # named files stay in their order
    assert of(series[::-1]) == found
    changed = BODY.copy()
    changed[3, 2, 1] ^= 1024
    assert of([write_volume(tmp_path / "c.nii", changed)]) != expected


def test_a_damaged_page_names_the_file(tmp_path):
    path = tmp_path / "a.tif"
    cv2.imwritemulti(str(path), [IMAGES[0], IMAGES[1]])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"1 of 1 images cannot be used: .*a\.tif: "):
        ImageSet([path]).check()


# --- the file in which they are kept ------------------------------------------------------------

def test_threads_read_while_others_read(tmp_path):
    """Batches are made in one thread while another judges the model."""
    spec = ScoringSpec(input_size=32)
    images = ImageSet([write_volume(tmp_path / "a.nii", np.concatenate([BODY] * 12))], spec=spec)
    images.check()
    expected = images.pixels(np.arange(60), spec)

    def read(seed: int) -> bool:
        chosen = np.random.default_rng(seed).integers(0, 60, 16)
        return torch.equal(images.pixels(chosen, spec), expected[chosen])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(80)))


def test_nothing_is_left_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    images = ImageSet([write_volume(tmp_path / "a.nii")], spec=ScoringSpec(input_size=32))
    images.check()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert images.pixels(np.array([4]), ScoringSpec(input_size=32)).shape == (1, 3, 32, 32)


def test_no_place_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    images = ImageSet([write_volume(tmp_path / "a.nii")], spec=ScoringSpec(input_size=32))
    with pytest.raises(OutputError, match=r"^the folder for temporary files \(TMPDIR\): cannot be"
                                          " written: No such file or directory$"):
        images.check(skip_bad=True)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "slices"), [(96, 2), (64, 5)])
def test_a_disk_that_is_full(tmp_path, run_with_file_limit, size, slices):
    """Also where it takes a part of the last image: 64 KiB are one at 96 pixels and most of a
    second, or four at 64."""
    path = write_volume(tmp_path / "a.nii", BODY[:slices])
    printed = run_with_file_limit(f"""
from scrd_fast.data.dataset import ImageSet
from scrd_fast.errors import OutputError
from scrd_fast.spec import ScoringSpec
images = ImageSet([{str(path)!r}], spec=ScoringSpec(input_size={size}))
try: images.check(skip_bad=True)
except OutputError as error: print(error)
""")
    assert printed == ("the folder for temporary files (TMPDIR): cannot be written: File too"
                       " large\n")


def test_a_rule_that_fits_no_image_is_told_of(tmp_path):
    """A window beside all values makes every image black."""
    files = write_series(tmp_path / "a")
    beside = ScoringSpec(input_size=32, decoding=DecodingRule("window", (30000.0, 31000.0)))
    images = ImageSet(files, spec=beside)
    with pytest.warns(UserWarning, match="data: 5 of 5 images have one value alone"):
        images.check()
    fitting = ScoringSpec(input_size=32, decoding=DecodingRule("window", (0.0, 4000.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageSet(files, spec=fitting).check()
