"""Volumes and DICOM series: slices have the labels of their masks, people those of their slices."""

import json
import re

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scrd_fast.evaluation.evaluate import evaluate
from scrd_fast.report.evaluation import list_lines
from tests.evaluation.data_sets import NAMES, SIDE, arrays, shrunk, write

pytest.importorskip("pydicom", reason="pydicom reads DICOM")

from tests.data.decode.dicom_by_hand import dicom, save

nibabel = pytest.importorskip("nibabel", reason="nibabel reads NIfTI")


def make_volumes(root, sick=3):
    """Six volumes of 5 slices, some of whose slices 1 and 2 have a lesion with a mask: a table."""
    rng, lines = np.random.default_rng(0), ["path,label,mask,patient,split,group"]
    for i in range(6):
        voxels = rng.normal(100, 20, (20, 24, 5)).astype(np.float32)
        mask = np.zeros(voxels.shape, np.uint8)
        if i < sick:
            voxels[5:12, 6:15, 1:3] += 200
            mask[5:12, 6:15, 1:3] = 4  # as labels of parts of a tumour are
            nibabel.Nifti1Image(mask, np.eye(4)).to_filename(root / f"m{i}.nii.gz")
        nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(root / f"v{i}.nii.gz")
        lines.append(f"v{i}.nii.gz,{int(i < sick)},{f'm{i}.nii.gz' if i < sick else ''},"
                     f"{NAMES[i]},test,{'tumour' if i < sick else ''}")
    (root / "volumes.csv").write_text("\n".join(lines) + "\n")
    return root / "volumes.csv"


@pytest.mark.slow
def test_slices_have_the_labels_of_their_masks(engine, tmp_path):
    found = evaluate(engine, make_volumes(tmp_path))
    labels, scores = arrays(found)
    assert [each.frame for each in found.images] == 6 * [0, 1, 2, 3, 4]
    assert labels.tolist() == 3 * [0, 1, 1, 0, 0] + 15 * [0]
    result = engine.score([tmp_path / f"v{i}.nii.gz" for i in range(6)])
    np.testing.assert_array_equal(scores, result.scores)
    overall, patients = found.parts  # the one kind of anomaly is all of them
    assert (overall.normal, overall.anomalous, overall.patients) == (24, 6, 6)
    assert (patients.normal, patients.anomalous) == (3, 3)
    assert {each.group for each in found.images if each.label} == {"tumour"}
    # In a picture row 0 is the front and column 0 the patient's right: both axes are turned.
    mask = np.zeros((24, 20), bool)
    mask[24 - 15 : 24 - 6, 20 - 12 : 20 - 5] = True
    masks = np.zeros((30, SIDE, SIDE), bool)
    masks[labels == 1] = shrunk(mask)
    assert found.pixels["auroc"].value == pytest.approx(
        roc_auc_score(masks.ravel(), result.maps.ravel()))
    assert not any("mask" in remark for remark in found.remarks)


def test_volumes_of_ill_people_alone_have_normal_slices(engine, tmp_path):
    found = evaluate(engine, make_volumes(tmp_path, sick=6))
    assert (found.parts[0].normal, found.parts[0].anomalous) == (18, 12)
    assert [part.level for part in found.parts] == ["image"]  # nobody is well


@pytest.mark.slow
def test_masks_of_volumes_that_do_not_fit(engine, tmp_path):
    table = make_volumes(tmp_path, sick=4)
    shapes = {0: (20, 24, 4), 1: (24, 20, 5)}
    for i, shape in shapes.items():
        nibabel.Nifti1Image(np.ones(shape, np.uint8), np.eye(4)).to_filename(
            tmp_path / f"m{i}.nii.gz")
    mask = nibabel.load(tmp_path / "m2.nii.gz")
    nibabel.Nifti1Image(np.asarray(mask.dataobj), np.diag([-1, 1, 1, 1])).to_filename(
        tmp_path / "m2.nii.gz")
    found = evaluate(engine, table)
    assert {path.name: reason.partition(": ")[2] for path, reason in found.failed.items()} == {
        "v0.nii.gz": "expected a mask for each of the file's 5 images, got 4",
        "v1.nii.gz": "expected a mask of the image's shape (24, 20), got (20, 24)",
        "v2.nii.gz": "expected a mask on the image's grid, got one that lies up to 19 of its pixels"
                     " away in the patient"}
    assert {each.path.name for each in found.images} == {f"v{i}.nii.gz" for i in (3, 4, 5)}
    nibabel.Nifti1Image(np.zeros((20, 24, 5), np.uint8), np.eye(4)).to_filename(
        tmp_path / "m0.nii.gz")
    (remark,) = [each for each in evaluate(engine, table).remarks if "anomalous pixel" in each]
    assert remark.startswith("1 anomalous files have a mask without an anomalous pixel: all of")
    assert "v0.nii.gz" in remark


def test_a_volume_without_mask_is_anomalous_as_a_whole(engine, tmp_path):
    table = make_volumes(tmp_path)
    table.write_text(re.sub(r"m\d\.nii\.gz", "", table.read_text()))
    found = evaluate(engine, table)
    assert arrays(found)[0].tolist() == 15 * [1] + 15 * [0]
    assert found.pixels is None
    (remark,) = [each for each in found.remarks if "count as anomalous" in each]
    assert remark.startswith("3 anomalous files of several images have no mask")


def test_dicom_series_of_patients_whom_only_headers_name(engine, tmp_path):
    """A table without a column of patients; files have a mask each, a picture."""
    rng, lines = np.random.default_rng(1), ["path,label,mask,split"]
    for number, name in enumerate(NAMES[:4]):
        for k in range(4):
            stored = rng.normal(100, 20, (40, 48)).astype(np.int16)
            lesion = number < 2 and k < 2
            if lesion:
                stored[8:20, 10:24] += 150
                mask = np.zeros((40, 48), np.uint8)
                mask[8:20, 10:24] = 1
                write(tmp_path / f"{number}{k}_mask.png", mask)
            save(dicom(stored, PatientID=name, PatientName=name, SeriesInstanceUID=f"1.2.{number}",
                       SOPInstanceUID=f"1.2.{number}.{k}", ImagePositionPatient=[0, 0, 3.0 * k],
                       ImageOrientationPatient=[1, 0, 0, 0, 1, 0], WindowCenter=150,
                       WindowWidth=300), tmp_path / f"{number}{k}.dcm")
            lines.append(f"{number}{k}.dcm,{int(lesion)},"
                         f"{f'{number}{k}_mask.png' if lesion else ''},test")
    save(dicom(stored, PatientID=NAMES[3], SeriesInstanceUID="1.2.3", SOPInstanceUID="1.2.3.3"),
         tmp_path / "again.dcm")
    lines.append("again.dcm,0,,test")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    found = evaluate(engine, tmp_path / "t.csv")
    assert [part.level for part in found.parts] == ["image", "patient"]
    assert (found.parts[0].normal, found.parts[0].anomalous, found.parts[0].patients) == (12, 4, 4)
    assert found.pixels is not None
    assert list(found.failed) == [tmp_path / "again.dcm"]
    shown = "\n".join([repr(found), json.dumps(found.to_dict()), *list_lines(found)])
    assert not any(name in shown for name in NAMES)
