"""BIDS: anatomical images by subject, labels from participants.tsv, lesion masks by name."""

import pytest

from scrd_fast.data.layouts import read_data_set
from scrd_fast.data.to_score import find_to_score
from scrd_fast.errors import DataError
from tests.data.layouts.trees import grow, told

pytestmark = pytest.mark.filterwarnings("ignore:skipped")


def participants(root, *rows):
    (root / "participants.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    return grow(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii",
                "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz")


def test_subjects_are_patients_and_normal_ones_are_to_train_on(root):
    participants(root, ["participant_id", "age", "group"], ["sub-01", "30", "Control"],
                 ["sub-02", "n/a", "HC"])
    found = read_data_set(root)
    assert found.layout == "BIDS"
    assert told(root, found.items) == [
        ("sub-01/anat/sub-01_T1w.nii.gz", "train", 0, None, None),
        ("sub-02/ses-1/anat/sub-02_ses-1_T1w.nii", "train", 0, None, None),
        ("sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz", "train", 0, None, None)]
    assert [item.patient for item in found.items] == ["01", "02", "02"]
    assert found.remarks == (
        "labels from the column group of participants.tsv: Control, HC normal, none anomalous",)


def test_without_a_split_labels_of_both_kinds_are_to_test_on(root):
    participants(root, ["participant_id", "diagnosis"], ["sub-01", "control"], ["sub-02", "fcd"])
    found = read_data_set(root)
    assert [(item.label, item.split, item.group) for item in found.items] == [
        (0, "test", None), (1, "test", "fcd"), (1, "test", "fcd")]
    assert any("no split told: all images are for testing" in line for line in found.remarks)


def test_splits_from_participants(root):
    rows = [["participant_id", "label", "split"], ["01", "0", "train"], ["sub-02", "1", "Test"]]
    participants(root, *rows)
    found = read_data_set(root)
    assert [(item.label, item.split) for item in found.items] == [
        (0, "train"), (1, "test"), (1, "test")]
    participants(root, *rows[:2], ["sub-02", "1", "train"])
    with pytest.raises(DataError, match=r"expected normal images in split train, got 2 anomalous"):
        read_data_set(root)
    participants(root, *rows[:2], ["sub-02", "1", "later"])
    with pytest.raises(DataError, match=r"participants\.tsv: expected train, .*got 'later'"):
        read_data_set(root)
    participants(root, *rows[:2])
    with pytest.raises(DataError, match=r"a row for each subject, got none for that of sub-02/"):
        read_data_set(root)


@pytest.mark.parametrize(("column", "values", "labels"), [
    ("group", ("young", "old"), (None, None)),
    ("group", ("1", "2"), (None, None)),
    ("label", ("0", "1"), (0, 1)),
    ("label", ("normal", "anomalous"), (0, 1)),
    ("dx", ("patient", "patient"), (1, 1)),
    ("condition", ("Healthy Control", "n/a"), (0, None)),
    ("sex", ("m", "f"), (None, None)),
])
def test_a_column_tells_only_where_its_values_are_labels(root, column, values, labels):
    participants(root, ["participant_id", column], ["sub-01", values[0]], ["sub-02", values[1]])
    found = read_data_set(root)
    assert tuple(item.label for item in found.items)[:2] == labels
    told_none = [line for line in found.remarks if "does not tell who is normal" in line]
    assert bool(told_none) == (labels == (None, None))


def test_who_has_no_label_is_not_taken_as_normal(root):
    participants(root, ["participant_id", "group"], ["sub-01", "control"], ["sub-02", "n/a"])
    found = read_data_set(root)
    assert [(item.label, item.split) for item in found.items] == [
        (0, "train"), (None, "train"), (None, "train")]
    assert found.normals("train") == found.items[:1]
    assert ("2 of 3 files have no label: for others have one, these are neither trained on nor"
            " taken as normal") in found.remarks


def test_without_participants_nothing_is_told(root):
    found = read_data_set(root)
    assert found.normals("train") == found.items
    assert not any("have no label" in line for line in found.remarks)
    assert {(item.label, item.split) for item in found.items} == {(None, "train")}
    assert any(line.startswith("no participants.tsv") for line in found.remarks)


def test_a_table_of_participants_that_is_wrong(root):
    participants(root, ["participant", "group"], ["sub-01", "control"])
    with pytest.raises(DataError, match="a column participant_id, got participant, group"):
        read_data_set(root)
    participants(root, ["participant_id"], ["sub-01"], ["sub-01"])
    with pytest.raises(DataError, match=r"\.tsv: row 3: expected each participant once"):
        read_data_set(root)


def test_kinds_of_images_are_groups(root):
    grow(root, "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
         "sub-01/anat/sub-01_defacemask.nii.gz", "sub-01/func/sub-01_task-rest_bold.nii.gz",
         "derivatives/x/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz")
    found = read_data_set(root)
    assert [item.group for item in found.items] == ["FLAIR", "T1w", "T1w", "T1w"]
    assert any("images of several kinds: FLAIR (1), T1w (3)" in line for line in found.remarks)
    assert any("1 image left out" in line and "_bold.nii.gz" in line for line in found.remarks)
    assert any("2 masks not used" in line for line in found.remarks)


@pytest.mark.parametrize("mask", [
    "derivatives/manual/sub-02/ses-1/anat/sub-02_ses-1_desc-lesion_mask.nii.gz",
    "derivatives/manual/sub-02/ses-1/anat/sub-02_ses-1_label-lesion_mask.nii.gz",
    "derivatives/manual/sub-02/ses-1/anat/sub-02_ses-1_T1w_label-lesion_roi.nii.gz",
    "derivatives/lesion_masks/sub-02/ses-1/anat/sub-02_ses-1_space-orig_mask.nii.gz",
    "derivatives/manual/sub-02/ses-1/anat/sub-02_ses-1_space-T1w_desc-tumor_dseg.nii.gz",
    "sub-02/ses-1/anat/sub-02_ses-1_label-L_desc-T1lesion_mask.nii.gz",
    "sub-02/ses-1/anat/sub-02_ses-1_T1w_roi.nii.gz"])
def test_lesion_masks_fit_by_name(root, mask):
    grow(root, mask)
    found = read_data_set(root)
    assert told(root, found.items)[1][2:] == (1, "lesion", mask)
    assert [item.mask is None for item in found.items] == [True, False, True]


def test_a_mask_of_one_kind_of_image_is_of_no_other(root):
    grow(root, "sub-01/anat/sub-01_acq-a_FLAIR.nii.gz",
         "sub-01/anat/sub-01_acq-a_FLAIR_roi.nii.gz")
    found = {item.path.name: item for item in read_data_set(root).items}
    assert found["sub-01_acq-a_FLAIR.nii.gz"].mask.name == "sub-01_acq-a_FLAIR_roi.nii.gz"
    assert found["sub-01_T1w.nii.gz"].mask is None


@pytest.mark.parametrize("mask", [
    "derivatives/m/sub-01/anat/sub-01_space-MNI152_desc-lesion_mask.nii.gz",
    "derivatives/m/sub-01/anat/sub-01_FLAIR_desc-lesion_mask.nii.gz",
    "derivatives/m/sub-09/anat/sub-09_desc-lesion_mask.nii.gz",
    "derivatives/m/sub-02/ses-3/anat/sub-02_ses-3_desc-lesion_mask.nii.gz"])
def test_a_mask_that_fits_no_image_is_told(root, mask):
    grow(root, mask)
    found = read_data_set(root)
    assert not any(item.mask for item in found.items)
    assert any("1 lesion mask fit no image" in line and mask in line for line in found.remarks)


def test_two_masks_of_one_image(root):
    grow(root, *(f"derivatives/{rater}/sub-01/anat/sub-01_desc-lesion_mask.nii.gz"
                 for rater in "ab"))
    with pytest.raises(DataError, match=r"sub-01_T1w\.nii\.gz: expected one lesion mask, got"):
        read_data_set(root)


def test_no_description_is_needed_and_one_alone_does_not_do(root, tmp_path_factory):
    (root / "dataset_description.json").unlink()
    assert read_data_set(root).layout == "BIDS"
    other = tmp_path_factory.mktemp("other")
    (other / "dataset_description.json").write_text("{}")
    grow(other, "rawdata/sub-01/anat/sub-01_T1w.nii.gz")
    with pytest.raises(DataError, match=r"expected sub-<name>/.*got rawdata/ \(1\)"):
        read_data_set(other)


def test_images_without_subjects_are_no_data_set_by_a_description(tmp_path):
    """Such as that of maps which were written beside them."""
    (tmp_path / "dataset_description.json").write_text("{}")
    grow(tmp_path, "a.png", "more/b.png", "sub-01_desc-anomaly_map.nii.gz")
    assert read_data_set(tmp_path).layout == "folder of normal images"
    assert len(find_to_score([tmp_path]).paths) == 3
