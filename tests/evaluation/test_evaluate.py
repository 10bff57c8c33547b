"""evaluate: figures equal scikit-learn's, labels and masks are as documented, nobody is named."""

import csv
import json
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_curve,
    recall_score,
    roc_auc_score,
    roc_curve,
)

import scrd_fast
from scrd_fast.errors import DataError, InputError
from scrd_fast.evaluation.evaluate import evaluate
from scrd_fast.metrics.bootstrap import image_intervals
from scrd_fast.metrics.pixel import gather_pixels
from scrd_fast.report.evaluation import (
    list_figures,
    list_images,
    list_lines,
    make_markdown,
    write_evaluation,
)
from tests.evaluation.data_sets import NAMES, SIDE, arrays, make_table, shrunk, spoiled, write
from tests.support.models import organs

WITHOUT_PATIENTS = "no file tells its patient"


@pytest.fixture(scope="module")
def calibrated(small_file, tmp_path_factory):
    """Of 19 images the smallest p-value is 1/20, which no binary number is."""
    path = tmp_path_factory.mktemp("calibrated") / "m.scrd"
    path.write_bytes(small_file.read_bytes())
    scrd_fast.calibrate(path, organs(19, SIDE, seed=2), fpr=0.05)
    with scrd_fast.load_engine(path) as loaded:
        yield loaded


def make_mvtec(root, masked=True):
    for part, count, seed in (("train", 3, 0), ("test", 12, 1)):
        for i, image in enumerate(organs(count, 72, seed)[:, :60]):
            write(root / part / "good" / f"{i:02}.png", image)
    for kind, count, seed in (("crack", 6, 3), ("hole", 5, 4)):
        for i, (image, mask) in enumerate(zip(*spoiled(count, seed), strict=True)):
            write(root / "test" / kind / f"{i:02}.png", image)
            if masked:
                write(root / "ground_truth" / kind / f"{i:02}_mask.png", mask)
    return root


@pytest.fixture(scope="module")
def mvtec(tmp_path_factory):
    return make_mvtec(tmp_path_factory.mktemp("mvtec"))


@pytest.fixture(scope="module")
def judged(engine, mvtec):
    return evaluate(engine, mvtec, specificity=0.8)


@pytest.fixture(scope="module")
def by_patient(engine, patients):
    return evaluate(engine, patients)


def values(part):
    return {name: figure.value for name, figure in part.figures.items()}


def best_of(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    accuracy = [accuracy_score(labels, scores > at) for at in (-np.inf, *scores)]
    return f1.max(), max(accuracy)


@pytest.mark.slow
def test_figures_of_images_are_scikit_learns(engine, judged):
    labels, scores = arrays(judged)
    np.testing.assert_array_equal(scores, engine.score([each.path for each in judged.images],
                                                       maps=False).scores)
    assert [each.label for each in judged.images] == [
        int(each.path.parent.name != "good") for each in judged.images]
    part = judged.parts[0]
    assert (part.level, part.group, part.normal, part.anomalous) == ("image", None, 12, 11)
    fpr, tpr, _ = roc_curve(labels, scores)
    f1, accuracy = best_of(labels, scores)
    assert values(part) == pytest.approx({
        "auroc": roc_auc_score(labels, scores),
        "average_precision": average_precision_score(labels, scores),
        "sensitivity_at_specificity": tpr[fpr <= 0.2].max(), "best_f1": f1,
        "best_accuracy": accuracy}, abs=1e-9)
    assert judged.threshold is None
    assert judged.p_values is None
    assert WITHOUT_PATIENTS in judged.remarks[-1]
    assert part.patients == 23


def test_figures_of_pixels_are_scikit_learns(engine, judged, mvtec):
    maps = engine.score([each.path for each in judged.images]).maps
    masks = np.zeros(maps.shape, bool)
    for mask, each in zip(masks, judged.images, strict=True):
        if each.label:
            name = mvtec / "ground_truth" / each.path.parent.name / f"{each.path.stem}_mask.png"
            mask[:] = shrunk(cv2.imread(str(name), cv2.IMREAD_GRAYSCALE))
    flat, truth = maps.ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(truth, flat)
    assert {name: figure.value for name, figure in judged.pixels.items()} == pytest.approx({
        "auroc": roc_auc_score(truth, flat),
        "average_precision": average_precision_score(truth, flat),
        "aupro": gather_pixels(maps, masks).aupro(0.3),
        "best_dice": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()},
        abs=1e-6)
    assert all(figure.interval.low < figure.value < figure.interval.high
               for figure in judged.pixels.values())


def test_a_kind_of_anomaly_is_judged_against_all_normal_images(judged):
    labels, scores = arrays(judged)
    kinds = np.array([each.group or "" for each in judged.images])
    crack, hole = judged.parts[1:]
    for part, kind, count in ((crack, "crack", 6), (hole, "hole", 5)):
        assert (part.level, part.group, part.normal, part.anomalous) == ("image", kind, 12, count)
        some = (labels == 0) | (kinds == kind)
        assert values(part)["auroc"] == pytest.approx(roc_auc_score(labels[some], scores[some]))


def test_without_masks_or_unasked_no_pixels(engine, judged, mvtec, tmp_path):
    unasked = evaluate(engine, mvtec, specificity=0.8, pixels=False)
    assert unasked == replace(judged, pixels=None)
    assert evaluate(engine, make_mvtec(tmp_path, masked=False)).pixels is None


def test_groups_with_normal_images_stand_for_themselves(by_patient):
    labels, scores = arrays(by_patient)
    sides = np.array([each.group for each in by_patient.images])
    parts = {part.group: part for part in by_patient.parts if part.group}
    assert parts.keys() == {"left", "right"}
    for side, part in parts.items():
        some = sides == side
        assert (part.normal, part.anomalous) == (9, 3)
        assert values(part)["auroc"] == pytest.approx(roc_auc_score(labels[some], scores[some]))


def test_threshold_of_labelled_validation_images(engine, by_patient, patients):
    paths = [patients.with_name(f"v{i}.png") for i in range(8)]
    truth, held = np.arange(8) > 4, engine.score(paths, maps=False).scores
    value = by_patient.threshold.value
    assert by_patient.threshold.source == "validation"
    assert f1_score(truth, held > np.float32(value)) == pytest.approx(best_of(truth, held)[0])
    labels, scores = arrays(by_patient)
    called = scores > np.float32(value)
    found = values(by_patient.parts[0])
    assert {name: found[name] for name in ("f1", "accuracy", "sensitivity", "specificity")} == (
        pytest.approx({"f1": f1_score(labels, called), "accuracy": accuracy_score(labels, called),
                       "sensitivity": recall_score(labels, called),
                       "specificity": recall_score(labels, called, pos_label=0)}))


@pytest.mark.slow
def test_threshold_and_p_values_of_a_calibration(calibrated, mvtec):
    found = evaluate(calibrated, mvtec, pixels=False)
    labels, scores = arrays(found)
    assert found.threshold.source == "calibration"
    assert found.threshold.value == calibrated.decisions.threshold
    p_values = calibrated.decisions.p_values(scores)
    assert [each.p_value for each in found.images] == p_values.tolist()
    normal = p_values[labels == 0]
    # The smallest of 19 images is 1/20: above 0.01, and not above 0.05.
    assert found.p_values == {"0.01": 0.0, "0.05": float(np.mean(normal < 0.051)),
                              "0.1": float(np.mean(normal < 0.101))}
    specificity = values(found.parts[0])["specificity"]
    assert found.p_values["0.05"] == pytest.approx(1 - specificity)
    assert 0 < specificity < 1


@pytest.mark.parametrize(("rule", "combine"), [("max", np.max), ("mean", np.mean)])
def test_patients(engine, patients, rule, combine):
    found = evaluate(engine, patients, patient_rule=rule, pixels=False)
    labels, scores = arrays(found)
    part = next(each for each in found.parts if each.level == "patient")
    truth = labels.reshape(6, 4).max(1)
    together = combine(scores.reshape(6, 4), axis=1)
    assert truth.tolist() == [1, 1, 1, 0, 0, 0]
    assert (part.normal, part.anomalous, part.patients) == (3, 3, 6)
    assert values(part)["auroc"] == pytest.approx(roc_auc_score(truth, together))
    assert ("f1" in part.figures) == (rule == "max")
    if rule == "max":
        called = together > np.float32(found.threshold.value)
        assert values(part)["f1"] == pytest.approx(f1_score(truth, called))


@pytest.mark.slow
def test_intervals_are_by_patient_and_of_the_seed(engine, by_patient, patients):
    labels, scores = arrays(by_patient)
    whose = np.repeat(np.arange(6), 4)
    expected = image_intervals(whose, labels, scores, threshold=by_patient.threshold.value)
    part = by_patient.parts[0]
    assert {name: figure.interval for name, figure in part.figures.items()} == expected
    assert part.patients == 6
    assert evaluate(engine, patients) == by_patient
    other = evaluate(engine, patients, seed=1)
    assert (other.seed, by_patient.seed) == (1, 0)
    assert values(other.parts[0]) == values(part)
    assert other.parts[0].figures["auroc"].interval != part.figures["auroc"].interval
    assert other.pixels["auroc"].interval != by_patient.pixels["auroc"].interval


def test_patients_of_paths(engine, tmp_path):
    make_mvtec(tmp_path, masked=False)
    with pytest.raises(DataError, match=r"expected all images of patient '0' in split"):
        evaluate(engine, tmp_path, patient_from=r"(\d)\.png$")
    shutil.rmtree(tmp_path / "train")
    assert evaluate(engine, tmp_path, patient_from=r"(\d)\.png$").parts[0].patients == 10


def test_what_is_written_reads_back_and_names_nobody(by_patient, calibrated, patients, tmp_path):
    found = evaluate(calibrated, patients)
    write_evaluation(found, tmp_path)
    told = json.loads((tmp_path / "evaluation.json").read_text())
    assert told == json.loads(json.dumps(found.to_dict()))
    assert told["parts"][0]["figures"]["auroc"] == {
        "value": found.parts[0].figures["auroc"].value,
        "interval": vars(found.parts[0].figures["auroc"].interval)}
    assert (told["seed"], told["specificity"], told["threshold"]["source"]) == (
        0, 0.95, "validation")
    figures = list(csv.DictReader((tmp_path / "figures.csv").open(newline="")))
    assert len(figures) == sum(len(part.figures) for part in found.parts) + len(found.pixels)
    first = found.parts[0].figures["auroc"]
    assert (float(figures[0]["value"]), float(figures[0]["low"]), float(figures[0]["high"])) == (
        first.value, first.interval.low, first.interval.high)
    assert {row["figure"] for row in figures if row["optimistic"] == "1"} == {
        "best_f1", "best_accuracy", "best_dice"}
    images = list(csv.DictReader((tmp_path / "images.csv").open(newline="")))
    for row, each in zip(images, found.images, strict=True):
        assert (row["image"], row["frame"], int(row["label"]), row["group"]) == (
            str(each.path), "", each.label, each.group)
        assert np.float32(row["score"]) == each.score
        assert np.float32(row["p_value"]) == np.float32(each.p_value)
    header, rule, row = (tmp_path / "row.md").read_text().splitlines()
    assert header.count("|") == rule.count("|") == row.count("|")
    assert "best f1 (optimistic)" in header
    assert row.startswith("| m.scrd | set.csv | ")
    assert not (tmp_path / "failed.csv").exists()
    shown = "\n".join([repr(found), *list_lines(found), make_markdown(found),
                       *map(str, list_figures(found)), *map(str, list_images(found)),
                       *(path.read_text() for path in tmp_path.iterdir())])
    assert not any(name in shown for name in (*NAMES, "Wotan"))
    assert "(max of their images)" in shown
    assert "chosen on the test set: optimistic" in shown


def test_images_without_label_are_left_out(engine, tmp_path):
    normal, (sick, _) = organs(4, 64, 1), spoiled(3, 2)
    rows = [(f"n{i}", normal[i], 0 if i else "", "", "test", "", None) for i in range(4)]
    rows += [(f"a{i}", sick[i], 1, "", "test", "", None) for i in range(3)]
    found = evaluate(engine, make_table(tmp_path / "t.csv", rows))
    assert (found.parts[0].normal, found.parts[0].anomalous) == (3, 3)
    assert "1 test files have no label and are left out" in found.remarks
    assert tmp_path / "n0.png" not in {each.path for each in found.images}


def test_unreadable_files_are_named_and_the_rest_is_judged(engine, judged, mvtec, tmp_path):
    make_mvtec(tmp_path)
    broken = tmp_path / "test" / "good" / "zz.png"
    whole = (tmp_path / "test" / "good" / "00.png").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    found = evaluate(engine, tmp_path, specificity=0.8)
    assert list(found.failed) == [broken]
    assert str(broken) in found.failed[broken]
    assert found.parts == judged.parts
    assert found.pixels == judged.pixels
    write_evaluation(found, tmp_path / "out")
    ((name, reason),) = list(csv.reader((tmp_path / "out" / "failed.csv").open(newline="")))[1:]
    assert name == str(broken)
    assert reason
    assert str(broken) not in reason


def test_masks_that_do_not_fit_are_named_and_the_rest_is_judged(engine, tmp_path):
    """Of another shape; of a normal image; none that is anomalous counts as all normal."""
    normal, (sick, masks) = organs(4, 64, 1), spoiled(4, 2)
    given = [masks[0], masks[1][:-1], 0 * masks[2], masks[3]]
    rows = [(f"n{i}", normal[i], 0, "", "test", "", None) for i in range(3)]
    rows += [("n3", normal[3], 0, "", "test", "", np.full((64, 64), 255, np.uint8))]
    rows += [(f"a{i}", sick[i], 1, "", "test", "", given[i]) for i in range(4)]
    found = evaluate(engine, make_table(tmp_path / "t.csv", rows))
    assert {path.name: reason.partition(": ")[2] for path, reason in found.failed.items()} == {
        "n3.png": "expected no anomalous pixel in the mask of a normal file, got some",
        "a1.png": "expected a mask of the image's shape (60, 72), got (59, 72)"}
    assert [(each.path.stem, each.label) for each in found.images] == [
        ("n0", 0), ("n1", 0), ("n2", 0), ("a0", 1), ("a2", 1), ("a3", 1)]
    (remark,) = [each for each in found.remarks if "left in their mask" in each]
    assert remark.startswith("1 anomalous images have no anomalous pixel left in their mask at the"
                             " maps' 64 x 64 pixels")
    assert "a2.png" in remark


@pytest.mark.parametrize(("rows", "message"), [
    ("a,0,,test\nb,0,,test\n", r"images to test on, got a data set \(table\) with 2 normal and 0"),
    ("a,1,,test\nb,1,,test\n", r"with 0 normal and 2 anomalous ones; a table \(CSV"),
    ("a,0,,train\nb,0,,validation\n", "without: 2 images are to train or validate on"),
    ("a,0,Quetzalcoatl,train\nb,1,Quetzalcoatl,test\n",
     r"b\.png: expected all images of patient 'Quetzalcoatl' in split train, as .*a\.png, got this"
     r" one in test"),
    ("a,0,,test\nc,1,,test\n", r"row 3: path: expected a file, got no such file"),
])
def test_data_sets_that_cannot_be_judged(engine, tmp_path, rows, message):
    for name, pixels in zip("ab", organs(2, 64), strict=True):
        write(tmp_path / f"{name}.png", pixels)
    (tmp_path / "t.csv").write_text("path,label,patient,split\n"
                                    + re.sub("^(.)", r"\1.png", rows, flags=re.MULTILINE))
    with pytest.raises(DataError, match=message):
        evaluate(engine, tmp_path / "t.csv")


def test_a_mask_that_is_not_there(engine, tmp_path):
    write(tmp_path / "a.png", organs(1, 64)[0])
    (tmp_path / "t.csv").write_text("path,label,mask\na.png,1,m.png\n")
    with pytest.raises(DataError, match=r"row 2: mask: expected a file, got no such file: 'm\.png'"
                       ):
        evaluate(engine, tmp_path / "t.csv")


def test_none_of_a_kind_could_be_scored(engine, tmp_path):
    make_mvtec(tmp_path, masked=False)
    for path in (tmp_path / "test" / "good").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"expected normal and anomalous test images, got 0 normal"
                       r" and 11 anomalous ones that could be scored; the first of 12 others: .*"
                       r"00\.png"):
        evaluate(engine, tmp_path)


@pytest.mark.parametrize(("options", "message"), [
    ({"patient_rule": "median"}, "patient_rule: expected one of"),
    ({"specificity": 1.0}, "specificity: expected a share above 0 and below 1, got 1"),
    ({"specificity": "high"}, "specificity: expected a share"),
    ({"seed": -1}, "seed: expected an integer from 0, got -1"),
    ({"device": "cpu"}, "device, trust: expected none with a loaded engine"),
    ({"patient_from": "("}, "patient_from: expected a regular expression"),
])
def test_options_that_do_not_do(engine, mvtec, options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        evaluate(engine, mvtec, **options)


@pytest.mark.slow
def test_the_path_of_an_engine_will_do(small_file, judged, mvtec):
    told = []
    found = scrd_fast.evaluate(small_file, mvtec, specificity=0.8,
                               progress=lambda *step: told.append(step))
    assert found == judged
    assert told[0] == (1, 23, "scoring test images")
    assert told[-1] == (0, 1, "bootstrap")
