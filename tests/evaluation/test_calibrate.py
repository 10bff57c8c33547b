"""Decisions kept in an engine file: from images, through every way to score, and watched."""

import pickle
import shutil
from dataclasses import asdict, make_dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

import scrd_fast
from scrd_fast.engine.engine_file import GOLDEN, read_engine_file, write_engine_file
from scrd_fast.engine.golden import check_same_scores
from scrd_fast.errors import DataError, EngineFileError, FidelityError, InputError
from scrd_fast.model.checkpoint import Checkpoint, save_checkpoint
from scrd_fast.model.scrd import SCRD
from tests.support.models import organs, pictures

cv2 = pytest.importorskip("cv2")

NORMALS, FRESH = organs(40, 64), organs(30, 64, seed=1)


@pytest.fixture
def path(small_file, tmp_path):
    copy = tmp_path / "m.scrd"
    copy.write_bytes(small_file.read_bytes())
    return copy


def write_folder(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        cv2.imwrite(str(folder / f"{i:03d}.png"), image)
    return folder


def test_every_way_to_score_decides_alike(path, tmp_path):
    told = []
    decisions = scrd_fast.calibrate(path, NORMALS, fpr=0.05,
                                    progress=lambda *step: told.append(step))
    assert told[-1] == (40, 40, "scoring normals")
    folder = write_folder(tmp_path / "fresh", FRESH)
    with scrd_fast.load_engine(path, verify=True) as engine:
        plain = engine.score(NORMALS)
        assert decisions.normal_scores == tuple(np.sort(plain.scores).tolist())
        assert plain.anomalous.sum() == np.floor(0.05 * 41) - 1  # all but the largest ones
        result = engine.score(FRESH)
        np.testing.assert_array_equal(result.p_values, decisions.p_values(result.scores))
        np.testing.assert_array_equal(result.anomalous, result.scores > decisions.threshold)
        assert result.p_values.dtype == np.float32
        assert result.anomalous.dtype == bool
        for other in (engine.submit(torch.from_numpy(FRESH)).result(), scrd_fast.score(list(FRESH)),
                      engine.score(sorted(folder.iterdir()))):
            np.testing.assert_array_equal(other.p_values, result.p_values)
            np.testing.assert_array_equal(other.anomalous, result.anomalous)


@pytest.mark.slow
def test_only_the_manifest_changes_and_a_second_time_replaces_it(path):
    before, members = read_engine_file(path)
    scrd_fast.calibrate(path, NORMALS, fpr=0.05)
    sick = np.clip(NORMALS.astype(int) + 90, 0, 255).astype(np.uint8)
    decisions = scrd_fast.calibrate(path, NORMALS, anomalous=sick, rule="specificity", target=0.9)
    after, kept = read_engine_file(path)
    assert kept == members
    assert replace(after, calibration=None, members={}) == replace(before, members={})
    assert after.calibration == decisions
    assert after.calibration.report["images"] == {"normal": 20, "anomalous": 20}


@pytest.mark.slow
def test_a_file_that_could_not_be_read_has_no_decision(path, tmp_path):
    scrd_fast.calibrate(path, NORMALS, fpr=0.05)
    folder = write_folder(tmp_path / "images", FRESH[:2])
    (folder / "broken.png").write_bytes(b"no image")
    with scrd_fast.load_engine(path) as engine:
        result = engine.score(sorted(folder.iterdir()))
    assert np.isnan(result.p_values).tolist() == [False, False, True]
    assert not result.anomalous[2]


@pytest.mark.slow
def test_monitor(path):
    with scrd_fast.load_engine(path) as engine, pytest.raises(
            InputError, match=r"^engine: expected a calibrated one, got .*scrd-fast calibrate"):
        scrd_fast.monitor(engine, FRESH)
    scrd_fast.calibrate(path, NORMALS, fpr=0.05)
    with scrd_fast.load_engine(path) as engine:
        same = scrd_fast.monitor(engine, FRESH)
        assert not same.drifted
        assert same.images == 30
        assert scrd_fast.monitor(engine, engine.score(FRESH)) == same
        brighter = np.clip(FRESH * 1.6 + 40, 0, 255).astype(np.uint8)
        assert scrd_fast.monitor(engine, brighter).drifted
        with pytest.raises(InputError, match=r"^recent: expected at least 20 images, got 3"):
            scrd_fast.monitor(engine, FRESH[:3])


@pytest.mark.parametrize(("normals", "options", "error", "message"), [
    (NORMALS, {}, InputError, "normals: expected at least 99 images for a false-alarm rate of 0.01"
     ", got 40"),
    (NORMALS[:0], {"fpr": 0.5}, InputError, "normals: expected at least one image, got none"),
    (NORMALS, {"rule": "f1"}, InputError, "rule: expected 'conformal' without anomalous images"),
    (NORMALS, {"anomalous": FRESH, "fpr": 0.1}, InputError, "fpr: expected none with anomalous"),
    (NORMALS, {"anomalous": FRESH[:0]}, InputError, "anomalous: expected at least one image"),
    (NORMALS, {"anomalous": FRESH[:5]}, InputError, "anomalous: expected at least 20 images"),
    (NORMALS.astype(np.int64), {"fpr": 0.5}, InputError, "normals: expected"),
    (None, {}, InputError, "normals: expected an array or list of images"),
    (NORMALS, {"fpr": 0.5, "rule": "magic"}, InputError, "rule: expected 'conformal'"),
    (NORMALS, {"anomalous": FRESH, "rule": "sensitivity"}, InputError, "target: expected a share"),
    (NORMALS, {"anomalous": FRESH, "seed": -1}, InputError, "seed: expected an integer from 0"),
    ("no such folder", {}, DataError, "no such folder: expected a folder, a table"),
])
def test_bad_input_leaves_the_file_as_it_was(path, normals, options, error, message):
    before = path.read_bytes()
    with pytest.raises(error, match=f"^{message}"):
        scrd_fast.calibrate(path, normals, **options)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_loaded_engine_or_the_path_of_its_file(path):
    with scrd_fast.load_engine(path) as engine:
        assert engine.decisions is None
        decisions = scrd_fast.calibrate(engine, NORMALS, fpr=0.05)
        assert engine.decisions == decisions
        assert engine.score(FRESH).p_values is not None
        assert read_engine_file(path)[0] == engine.manifest
        assert pickle.loads(pickle.dumps(engine)).decisions == decisions
        assert scrd_fast.monitor(engine, FRESH) == scrd_fast.monitor(path, FRESH)
        assert scrd_fast.monitor(str(path), engine.score(FRESH)).images == len(FRESH)
        with pytest.raises(InputError, match=r"^device, trust: expected none with a loaded"):
            scrd_fast.monitor(engine, FRESH, device="cpu")
    with pytest.raises(EngineFileError, match=r"No such file"):
        scrd_fast.monitor(path.with_name("none.scrd"), FRESH)
    with pytest.raises(InputError, match=r"^engine: expected a path"):
        scrd_fast.monitor(None, FRESH)


@pytest.mark.slow
def test_the_working_directory_may_change(path, tmp_path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with scrd_fast.load_engine(path.name) as engine:
        monkeypatch.chdir(tmp_path)
        scrd_fast.calibrate(engine, NORMALS, fpr=0.05)
    assert read_engine_file(path)[0].calibration is not None


def test_a_broken_image_is_named(path, tmp_path):
    folder = write_folder(tmp_path / "images", FRESH[:20])
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^normals: .*broken\.png"):
        scrd_fast.calibrate(path, folder, fpr=0.5)


@pytest.mark.slow
def test_of_a_data_set_its_validation_normals_are_taken(path, tmp_path):
    for i, (part, images) in enumerate((("train", NORMALS[:3]), ("valid", FRESH),
                                        ("test", NORMALS[3:6]))):
        (tmp_path / "set" / part).mkdir(parents=True)
        write_folder(tmp_path / "set" / part / "good", images)
        if i:
            write_folder(tmp_path / "set" / part / "Ungood", NORMALS[6:9])
    decisions = scrd_fast.calibrate(path, tmp_path / "set", fpr=0.05)
    assert decisions == scrd_fast.calibrate(path, FRESH, fpr=0.05)
    assert decisions == scrd_fast.calibrate(path, tmp_path / "set" / "valid" / "good", fpr=0.05)
    rows = [f"set/valid/good/{i:03}.png,0,validation\n" for i in range(30)]
    (tmp_path / "t.csv").write_text("".join([
        "path,label,split\n", *rows, "set/valid/Ungood/000.png,1,validation\n",
        "set/valid/Ungood/001.png,,validation\n",  # nobody knows
        "set/train/good/000.png,0,train\n"]))
    assert scrd_fast.calibrate(path, tmp_path / "t.csv", fpr=0.05) == decisions
    both = scrd_fast.calibrate(path, tmp_path / "t.csv",
                               anomalous=write_folder(tmp_path / "sick", NORMALS[:20]))
    assert both.normal_scores == decisions.normal_scores


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "layout"), [
    (("train/good", "test/good", "test/crack"), "MVTec style"), (("good", "crack"),
                                                                 "labelled folder")])
def test_a_data_set_without_held_out_normals(path, tmp_path, parts, layout):
    """Those of training score too low, and those of the test part are to judge by."""
    for part in parts:
        (tmp_path / "set" / part).parent.mkdir(parents=True, exist_ok=True)
        write_folder(tmp_path / "set" / part, FRESH)
    before = path.read_bytes()
    with pytest.raises(DataError, match=rf"^{tmp_path / 'set'}: expected held-out normal images,"
                       rf" got a data set \({layout}\) without; give a folder of such"):
        scrd_fast.calibrate(path, tmp_path / "set", fpr=0.05)
    assert path.read_bytes() == before
    if layout == "MVTec style":
        decisions = scrd_fast.calibrate(path, tmp_path / "set" / "test" / "good", fpr=0.05)
        assert len(decisions.normal_scores) == 30


@pytest.mark.slow
def test_of_a_data_set_its_anomalous_images_are_taken(path, tmp_path):
    """Neither good ones nor masks: those of the validation part, else those there are."""
    sick = np.clip(NORMALS[:22].astype(int) + 60, 0, 255).astype(np.uint8)
    top = tmp_path / "set"
    for part in ("train", "test", "ground_truth"):
        (top / part).mkdir(parents=True)
    write_folder(top / "train" / "good", FRESH[:3])
    write_folder(top / "test" / "good", FRESH[3:6])
    write_folder(top / "test" / "crack", sick)
    (top / "ground_truth" / "crack").mkdir()
    for i in range(len(sick)):
        cv2.imwrite(str(top / "ground_truth" / "crack" / f"{i:03}_mask.png"), sick[i] // 255 * 255)
    expected = scrd_fast.calibrate(path, NORMALS, anomalous=sick)
    assert scrd_fast.calibrate(path, NORMALS, anomalous=top) == expected
    assert scrd_fast.calibrate(path, NORMALS, anomalous=top / "test" / "crack") == expected
    assert scrd_fast.calibrate(path, NORMALS, anomalous=sorted(
        (top / "test" / "crack").iterdir())) == expected
    shutil.copytree(top / "test" / "crack", tmp_path / "sick" / "tumor")  # no labels
    assert scrd_fast.calibrate(path, NORMALS, anomalous=tmp_path / "sick") == expected
    (top / "valid").mkdir()
    write_folder(top / "valid" / "good", FRESH[6:9])
    write_folder(top / "valid" / "crack", sick[1:])
    assert scrd_fast.calibrate(path, NORMALS, anomalous=top) == scrd_fast.calibrate(
        path, NORMALS, anomalous=sick[1:])
    shutil.rmtree(top / "valid")
    shutil.rmtree(top / "test" / "crack")
    shutil.rmtree(top / "ground_truth")
    with pytest.raises(DataError, match=rf"^{top}: expected anomalous images, got a data set"
                       r" \(MVTec style\) without; give a folder of such"):
        scrd_fast.calibrate(path, NORMALS, anomalous=top)


def write_volumes(folder, count, add=0):
    """NIfTI files of six slices each; a file's own slices are alike."""
    nibabel = pytest.importorskip("nibabel", reason="nibabel reads NIfTI")
    folder.mkdir()
    for i in range(count):
        slices = organs(6, 64, seed=50 + i).astype(np.int16) + add
        nibabel.save(nibabel.Nifti1Image(slices.transpose(2, 1, 0), np.eye(4)),
                     folder / f"{i}.nii")
    return folder


@pytest.mark.slow
def test_volumes_are_patients(path, tmp_path):
    normals, sick = write_volumes(tmp_path / "a", 4), write_volumes(tmp_path / "b", 5, add=60)
    told = []
    with pytest.warns(UserWarning, match=r"^normals: 24 images of 4 patients: p-values and the"
                                         r" rate") as warned:
        scrd_fast.calibrate(path, normals, fpr=0.1, progress=lambda *step: told.append(step))
    assert [each.filename for each in warned] == [__file__]
    assert told == [(i, 4, "scoring normals") for i in range(1, 5)]
    report = scrd_fast.calibrate(path, normals, anomalous=sick).report
    assert report["images"] == {"normal": 12, "anomalous": 18}
    assert report["patients"] == {"normal": 2, "anomalous": 3}
    (sick / "3.nii").unlink()
    (sick / "4.nii").unlink()
    with pytest.raises(InputError, match=r"^anomalous: expected at least 20 images of each kind"):
        scrd_fast.calibrate(path, normals, anomalous=sick)


@pytest.mark.slow
def test_pictures_are_no_patients_to_warn_of(path, tmp_path, recwarn):
    scrd_fast.calibrate(path, write_folder(tmp_path / "images", FRESH), fpr=0.05)
    assert not list(recwarn)


@pytest.mark.slow
def test_warnings_name_the_callers_line(path, tmp_path):
    for name in ("images", "sick"):
        write_folder(tmp_path / name, FRESH)
        (tmp_path / name / "slice.svs").write_bytes(b"something")
    with pytest.warns(UserWarning, match="skipped 1 file") as warned:
        scrd_fast.calibrate(path, [tmp_path / "images"], anomalous=[tmp_path / "sick"])
    assert [each.filename for each in warned] == [__file__] * 2
    with pytest.warns(UserWarning, match="skipped 1 file") as warned:
        scrd_fast.monitor(path, tmp_path / "sick")
    assert [each.filename for each in warned] == [__file__]


def spoil(path):
    """A file whose calibration is none."""
    manifest, members = read_engine_file(path)
    none = make_dataclass("None_", [("threshold", int)])(1)
    write_engine_file(path, replace(manifest, calibration=none), members)


def test_a_calibration_that_is_none_is_an_engine_file_error(path):
    spoil(path)
    with pytest.raises(EngineFileError, match=r"m\.scrd: .*manifest\.calibration"):
        scrd_fast.load_engine(path)


@pytest.mark.slow
def test_pictures_are_not_kept(path):
    """A file that travels carries scores of patients' images, never the images."""
    scrd_fast.calibrate(path, pictures(30, 64), fpr=0.05)
    manifest, _ = read_engine_file(path)
    kept = asdict(manifest.calibration)
    assert {name: np.shape(value) for name, value in kept.items()} == {
        "normal_scores": (30,), "scale_weights": (30, 3), "rule": (), "target": (),
        "threshold": (), "report": (), "maps": ()}
    assert {name: np.shape(value) for name, value in kept["maps"].items()} == {
        "scale": (2,), "pixel_threshold": ()}


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_how_maps_are_read(path, reduction):
    """Pixels are anomalous as often as images are, and normal images have little colour."""
    manifest, members = read_engine_file(path)
    write_engine_file(path, replace(manifest, spec=replace(manifest.spec, reduction=reduction)),
                      members)
    decisions = scrd_fast.calibrate(path, NORMALS, fpr=0.05)
    with scrd_fast.load_engine(path) as engine:
        assert engine.decisions.maps == decisions.maps
        maps = engine.score(NORMALS).maps
        largest = np.sort(maps.max(axis=(1, 2)))
        assert decisions.maps.pixel_threshold == largest[-2]  # 40 images: one may lie above it
        if reduction == "max":
            assert decisions.maps.pixel_threshold == decisions.threshold
        low, high = decisions.maps.scale
        assert low == pytest.approx(np.quantile(maps, 0.99, method="inverted_cdf"), abs=1e-5)
        assert high >= decisions.maps.pixel_threshold
        sick = NORMALS[:20].copy()
        sick[:, 20:40, 20:40] ^= 255
        found = scrd_fast.calibrate(engine, NORMALS, anomalous=sick)
        expected = found.threshold if reduction == "max" else largest[-2]  # 5 % of 40, or few
        assert found.maps.pixel_threshold == pytest.approx(expected)
        found = scrd_fast.calibrate(engine, NORMALS, anomalous=sick, rule="specificity",
                                    target=0.9)
        expected = found.threshold if reduction == "max" else largest[-4]  # 10 % of 40
        assert found.maps.pixel_threshold == pytest.approx(expected)


@pytest.fixture
def calibrated(path):
    scrd_fast.calibrate(path, NORMALS, fpr=0.05)
    return path


def build_over(path, checkpoint) -> scrd_fast.Engine:
    return scrd_fast.build_engine(checkpoint, path, device="cpu", precision="fp32", buckets=(1,))


@pytest.mark.slow
def test_a_build_keeps_the_calibration_of_the_same_scores(calibrated, small_path, recwarn):
    before = read_engine_file(calibrated)[0].calibration
    with build_over(calibrated, small_path) as engine:
        assert engine.decisions == before
        assert engine.score(FRESH).p_values is not None
    assert read_engine_file(calibrated)[0].calibration == before
    with scrd_fast.rebuild_engine(calibrated) as engine:
        assert engine.decisions == before
    assert read_engine_file(calibrated)[0].calibration == before
    assert [str(w.message) for w in recwarn if "calibration" in str(w.message)] == []


@pytest.mark.slow
def test_a_build_of_another_model_says_that_it_drops_the_calibration(calibrated, small, tmp_path):
    torch.manual_seed(4)
    other = Checkpoint(SCRD("resnet18").eval(), small.spec, small.config)
    checkpoint = save_checkpoint(other, tmp_path / "other.safetensors")
    with pytest.warns(UserWarning, match=r"m\.scrd: the calibration .* is dropped: it is of another"
                                         r" model; calibrate again with: scrd-fast calibrate"):
        engine = build_over(calibrated, checkpoint)
    with engine:
        assert engine.decisions is None
    assert read_engine_file(calibrated)[0].calibration is None


@pytest.mark.slow
def test_a_calibration_that_is_none_is_dropped(path, small_path):
    """Nobody could have loaded the file that it was in."""
    spoil(path)
    build_over(path, small_path).close()
    scrd_fast.load_engine(path).close()


def test_scores_that_decisions_hold_for(small_file):
    """As many may be decided otherwise as the precisions allow: the looser of the two."""
    golden = read_engine_file(small_file)[1][GOLDEN]
    tensors = load(golden)
    scores = tensors["probe_scores"]
    rising = np.argsort(scores)
    swapped = scores.copy()
    # Beside the 90th percentile: four decisions of 2 000 (200 images, ten thresholds) at most.
    swapped[rising[[178, 181]]] = scores[rising[[181, 178]]]

    def check(old, *precisions):
        check_same_scores(save(tensors | {"probe_scores": old}), golden, precisions)

    check(scores, "fp32", "fp32")
    check(scores * np.float32(1 + 1e-7), "fp32", "fp32")
    for fine in (("fp32", "bf16"), ("int8", "fp32"), ("bf16", "bf16")):
        check(swapped, *fine)
    with pytest.raises(FidelityError, match="of the decisions about probe images are others now"):
        check(swapped, "fp32", "fp32")
    for bad in (scores * np.float32(1.5), scores[::-1].copy()):
        with pytest.raises(FidelityError):
            check(bad, "int8", "int8")
    with pytest.raises(FidelityError, match="another model"):
        check_same_scores(save(tensors | {"scores": tensors["scores"] * np.float32(1.001)}), golden,
                          ("int8", "int8"))
    with pytest.raises(EngineFileError, match="cannot be read"):
        check_same_scores(b"", golden, ("int8", "int8"))
