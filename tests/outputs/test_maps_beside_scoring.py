"""Maps beside scoring: a file for each series or other file, its name, what describes them all."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("nibabel", reason="nibabel reads and writes NIfTI")
pytest.importorskip("pydicom", reason="pydicom reads DICOM")

import nibabel

import scrd_fast
from scrd_fast.errors import OutputError
from scrd_fast.outputs.maps import FORMATS, collect_maps, describe_maps, name_maps, write_maps
from tests.outputs.maps_by_hand import (
    SIDE,
    brightness,
    brightness_of_colour,
    read,
    save_volume,
    scored,
    write_series,
)


def test_names_are_those_of_the_sources():
    names = {"x/sub-01_T1w.nii.gz": "sub-01_T1w", "x/b.NII": "b", "c.d.png": "c.d",
             "1.2.840.10008": "1.2.840.10008", "é x.tif": "é x"}
    assert name_maps(map(Path, names)) == {Path(key): value for key, value in names.items()}


def test_names_differ(tmp_path):
    paths = [Path("a/t1.nii.gz"), Path("a/t1.nii"), Path("b/t1.nii"), Path("b/T1.dcm"),
             Path("b/t2.nii"), Path("y" * 300), Path("y" * 299 + "z"), Path("é" * 120),
             Path(".nii.gz"), Path("a?b"), Path('a"b'), Path("..x.png"), Path("n\nl\udcff.png")]
    names = name_maps(paths)
    assert list(names) == paths
    assert len({name.casefold() for name in names.values()}) == len(paths)
    assert names[Path("b/t2.nii")] == "t2"
    assert names[Path("..x.png")] == "x"
    assert names[Path("n\nl\udcff.png")] == "n_l_"
    assert all(re.fullmatch("t1_[0-9a-f]{12}", names[path], re.IGNORECASE) for path in paths[:4])
    for name in names.values():
        (tmp_path / f"{name}_desc-anomaly_map.nii.gz").write_bytes(b"")
        assert name.isprintable()
    assert len(list(tmp_path.iterdir())) == len(paths)
    assert name_maps(reversed(paths)) == names


def test_names_of_series():
    """They are what headers say, which may be anything."""
    uids = ["1.2.840.10008.7", "1.2/../3", "1.2_.._3", "1.2|3", "9." * 200]
    groups = [*uids, Path("b/1.2_3.dcm"), Path("series-1.2_3.nii")]
    names = name_maps(groups)
    assert names["1.2.840.10008.7"] == "series-1.2.840.10008.7"
    assert names[Path("b/1.2_3.dcm")] == "1.2_3"
    assert len(set(names.values())) == len(groups)
    for name in names.values():
        assert len(f"{name}_desc-anomaly_map.nii.gz".encode()) <= 255
        assert "/" not in name
    assert name_maps(reversed(groups)) == names


def test_long_and_odd_names(tmp_path, pictures):
    source = tmp_path / os.fsdecode(b"\xff" + b"o" * 250)
    os.rename(tmp_path / "one.png", source)
    items = scored(scrd_fast.read_images(source), brightness_of_colour)
    for kind in ("npz", "tiff"):
        path = write_maps(items, tmp_path / "out", name_maps([source])[source], kind)
        assert path.exists()
        path.name.encode()
    with np.load(tmp_path / "out" / path.with_suffix(".npz").name, allow_pickle=False) as found:
        assert found["paths"].tolist() == [str(source)]


def collect(folder, kind, paths, alter=lambda path: None):
    """As scoring does it; the files that are there after each, and the notes."""
    notes, seen = [], []
    with collect_maps(folder, kind, paths, notes) as take:
        for path in paths:
            alter(path)
            known = path.suffix in (".png", ".tif")
            for item in scored(scrd_fast.read_images(path) if known else read([path]), brightness):
                take(item)
            seen.append(list_maps(folder))
    return seen, notes


def list_maps(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".json")


def name_map(series):
    return f"series-{series}_desc-anomaly_map.nii.gz"


def test_files_of_series_in_turn_are_no_half_series(tmp_path):
    for series in ("1.2", "1.3"):
        write_series(tmp_path / series, [0, 3, 6], SeriesInstanceUID=series)
    paths = [tmp_path / series / f"0{i}" for i in range(3) for series in ("1.2", "1.3")]
    seen, notes = collect(tmp_path / "out", "nifti", paths)
    assert seen == [[]] * 5 + [[name_map("1.2")]]
    assert notes == []
    assert list_maps(tmp_path / "out") == [name_map("1.2"), name_map("1.3")]
    for name in list_maps(tmp_path / "out"):
        assert nibabel.load(tmp_path / "out" / name).shape == (23, 19, 3)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("keyword", "name"), [("StudyInstanceUID", "study"),
                                               ("PatientID", "patient")])
def test_one_series_of_two_patients_or_studies(tmp_path, kind, keyword, name):
    """Others are written."""
    write_series(tmp_path / "a", [0, 3])
    write_series(tmp_path / "b", [6, 9], **{keyword: "1.9"})
    write_series(tmp_path / "c", [0, 3], SeriesInstanceUID="1.3")
    paths = [path for folder in "abc" for path in sorted((tmp_path / folder).iterdir())]
    _, notes = collect(tmp_path / "out", kind, paths)
    assert notes == [f"{paths[0]}: no map: {paths[2]}: expected the {name} of {paths[0]}, got"
                     " another"]
    assert [each.partition("_")[0] for each in list_maps(tmp_path / "out")] == ["series-1.3"]


def test_a_series_that_changes_while_it_is_scored(tmp_path):
    paths = sorted(write_series(tmp_path / "a", [0, 3]).iterdir())

    def alter(path):
        if path == paths[1]:
            other = write_series(tmp_path / "b", [3], SeriesInstanceUID="1.9") / "00"
            os.replace(other, path)

    _, notes = collect(tmp_path / "out", "nifti", paths, alter)
    assert notes == [f"{paths[0]}: no map: {paths[1]}: expected the series of {paths[0]}, got"
                     " another"]


def test_pictures_are_told_in_one_line(tmp_path, pictures):
    """And so is a file of several."""
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))
    reason = ("no map of what does not tell where it lies in the patient, as NIfTI maps do; choose"
              " npz or tiff")
    pages = tmp_path / "pages.tif"
    assert collect(tmp_path / "1", "nifti", [pages])[1] == [f"{reason}: 1 file ({pages})"]
    notes = collect(tmp_path / "2", "nifti", [*paths, pages])[1]
    assert notes == [f"{reason}: 5 files ({paths[0]}, {paths[1]}, {paths[2]} and 2 more)"]
    assert list_maps(tmp_path / "2") == []
    assert collect(tmp_path / "3", "tiff", [*paths, pages])[1] == []
    assert len(list_maps(tmp_path / "3")) == 5


def test_after_a_failure_nothing_more_is_written(tmp_path, pictures):
    paths = [save_volume(tmp_path / f"{i}.nii") for i in range(2)]
    one, two, picture = ([replace(item, map=np.zeros((SIDE, SIDE), np.float32)) for item in items]
                         for items in (*(scored(read(path), brightness) for path in paths),
                                       pictures[1]))
    out, notes = tmp_path / "out", []
    with collect_maps(out, "nifti", [tmp_path / "one.png", *paths], notes) as take:
        for item in (*picture, *one):
            take(item)
        shutil.rmtree(out)
        out.write_text("a file")
        with pytest.raises(OutputError, match="cannot be written"):
            take(two[0])
        out.unlink()
    assert not out.exists()
    assert [note.partition(":")[0] for note in notes] == [
        "no map of what does not tell where it lies in the patient, as NIfTI maps do; choose npz"
        " or tiff"]


def test_a_folder_of_other_data_is_refused_before_scoring(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "raw"}')
    with (pytest.raises(OutputError, match="describes other data"),
          collect_maps(tmp_path, "nifti", [], [])):
        pytest.fail("it began")


def test_a_derivative_data_set(tmp_path):
    raw = tmp_path / "raw ü"
    (raw / "sub-1/anat").mkdir(parents=True)
    (raw / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.8.0"}')
    (tmp_path / "plain").mkdir()
    out = tmp_path / "out"
    sources = [raw / "sub-1/anat/a.nii.gz", raw, tmp_path / "plain", tmp_path / "plain/b.nii"]
    sources[0].touch()
    path = describe_maps(out, sources)
    assert path == out / "dataset_description.json"
    found = json.loads(path.read_text())
    assert found == {
        "Name": "Anomaly maps", "BIDSVersion": found["BIDSVersion"], "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "scrd-fast", "Version": scrd_fast.__version__}],
        "SourceDatasets": [{"URL": raw.as_uri()}, {"URL": (tmp_path / "plain").as_uri()}]}
    assert re.fullmatch(r"1\.\d+\.\d+", found["BIDSVersion"])
    describe_maps(out, [raw])  # its own may be replaced
    assert json.loads(path.read_text())["SourceDatasets"] == [{"URL": raw.as_uri()}]


@pytest.mark.parametrize("content", [
    b'{"Name": "raw"}', b'{"GeneratedBy": []}', b'{"GeneratedBy": [{"Name": "other"}]}', b"[]",
    b"\xff", b"", b'"a"'])
def test_the_description_of_other_data_stays(tmp_path, content):
    path = tmp_path / "dataset_description.json"
    path.write_bytes(content)
    with pytest.raises(OutputError, match=f"^{path}: describes other data"):
        describe_maps(tmp_path, [tmp_path])
    assert path.read_bytes() == content


def test_a_description_that_cannot_be_read(tmp_path):
    (tmp_path / "dataset_description.json").mkdir()
    with pytest.raises(OutputError, match=r"dataset_description\.json: cannot be written"):
        describe_maps(tmp_path, [tmp_path])
