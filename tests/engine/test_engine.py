"""Engines against the reference model, and what they make of bad input."""

import copy
import multiprocessing
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.backends.registry import backend_of, native_precisions
from scrd_fast.engine import current as _current
from scrd_fast.errors import (
    BackendUnavailable,
    CheckpointError,
    ClosedError,
    EngineFileError,
    FidelityError,
    InputError,
    OutputError,
)
from scrd_fast.metrics.agreement import Limits
from scrd_fast.model.reference import score_images
from scrd_fast.reference.anomaly_map import combine_distances
from tests.support.models import EACH_BACKEND, pictures
from tests.support.tolerances import allowed

MAP = allowed("engine_map", "float32", "engine")
SCORE = allowed("engine_score", "float32", "engine")


def check_against_reference(engine, checkpoint, images):
    result = engine.score(images)
    reference, weights = score_images(checkpoint.model, checkpoint.spec, images)
    maps = reference.map.numpy()
    assert np.abs(result.maps - maps).max() <= MAP * np.ptp(maps)
    scores = reference.score(checkpoint.spec).numpy()
    assert np.abs(result.scores - scores).max() <= SCORE * np.abs(scores).max()
    np.testing.assert_allclose(result.scale_weights, weights, atol=1e-4)
    without = engine.score(images, maps=False)
    assert without.maps is None
    np.testing.assert_allclose(without.scores, result.scores, rtol=1e-6)


@pytest.fixture(scope="module", params=EACH_BACKEND)
def small_engine(request, small_files):
    with scrd_fast.load_engine(small_files(request.param), trust=True) as engine:
        yield engine


@pytest.mark.parametrize("count", [1, 2, 7, 35])
def test_small_fp32_engine_matches_reference(small_engine, small, count):
    check_against_reference(small_engine, small, pictures(count, 64))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 7])
def test_large_fp32_engine_matches_reference(large_engine, large, count):
    check_against_reference(large_engine, large, pictures(count, 64))


@pytest.fixture(scope="module")
def large_engine(large_path):
    return scrd_fast.build_engine(large_path, precision="fp32", buckets=(1, 4))


@pytest.mark.parametrize("which", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_score_does_not_depend_on_neighbours(request, which, small_engine):
    engine = small_engine if which == "small" else request.getfixturevalue("large_engine")
    on_gpu = backend_of(engine.manifest.backend).on_gpu
    tolerance = allowed("engine_neighbours", "float32", "torch_cuda" if on_gpu else "engine")
    images = pictures(7, 64)
    together = engine.score(images).scores
    others = pictures(7, 64, seed=9)
    others[3] = images[3]
    swapped = engine.score(others).scores[3]
    alone = engine.score(images[3:4]).scores[0]
    for score in (swapped, alone):
        assert abs(score - together[3]) <= tolerance * abs(together[3])


@pytest.mark.parametrize("backend", EACH_BACKEND)
def test_bf16_engine_computes_in_bf16_but_for_the_tail(small_path, tmp_path, backend):
    out = tmp_path / "model.scrd"
    if "bf16" not in native_precisions(backend):
        with pytest.raises(BackendUnavailable, match="bf16"):
            scrd_fast.build_engine(small_path, out, backend=backend, precision="bf16")
        return
    # Untrained weights rank images by chance: the table's limits are for trained ones.
    engine = scrd_fast.build_engine(small_path, out, backend=backend, precision="bf16",
                                    buckets=(1,), limits=Limits(rank_correlation=0.9))
    report = engine.manifest.fidelity.report
    assert report.rank_correlation >= 0.9
    assert 1e-6 < report.score_error < 0.05
    used = engine.manifest.precision_used
    assert list(used["convolutions"]) == ["bf16"]
    assert "bf16" not in used["tail"]


@pytest.mark.slow
def test_a_build_that_misses_its_limits_leaves_nothing(small_path, tmp_path):
    with pytest.raises(FidelityError, match=r"fp32: map_error: expected <= 1e-12, got"):
        scrd_fast.build_engine(small_path, tmp_path / "model.scrd", precision="fp32",
                               limits=Limits(map_error=1e-12))
    assert list(tmp_path.iterdir()) == []


def test_load_gives_the_same_scores_and_becomes_current(small_engine):
    images = pictures(3, 64)
    expected = small_engine.score(images)
    loaded = scrd_fast.load_engine(small_engine.path, verify=True)
    again = scrd_fast.score(images)
    np.testing.assert_array_equal(again.scores, expected.scores)
    np.testing.assert_array_equal(again.maps, expected.maps)
    assert loaded.manifest.backend == small_engine.manifest.backend
    assert scrd_fast.verify_engine(small_engine.path)["score_error"] <= SCORE


def test_threads_may_share_an_engine(small_engine):
    from concurrent.futures import ThreadPoolExecutor

    batches = [pictures(2, 64, seed) for seed in range(6)]
    expected = [small_engine.score(batch).scores for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(small_engine.score, batches * 3), expected * 3,
                                strict=True):
            np.testing.assert_allclose(ours.scores, theirs, rtol=1e-6)


def test_every_kind_of_batch_gives_the_same_score(small_engine, tmp_path):
    cv2 = pytest.importorskip("cv2")

    grey = pictures(2, 64)[..., 0]
    expected = small_engine.score(grey).scores
    colour = np.repeat(grey[..., None], 3, axis=-1)
    paths = []
    for i, image in enumerate(grey):
        paths.append(tmp_path / f"{i}.png")
        cv2.imwrite(str(paths[-1]), image)
    wide = (grey.astype(np.uint16) * 257)
    batches = [colour, list(grey), torch.from_numpy(grey), paths, [str(p) for p in paths], wide,
               grey.astype(np.float32) / 255]
    for batch in batches:
        np.testing.assert_allclose(small_engine.score(batch).scores, expected, rtol=1e-5)


def test_images_of_other_sizes(small_engine, small):
    images = [pictures(1, side)[0][: side - cut] for side, cut in ((64, 0), (200, 31), (41, 5))]
    check_against_reference(small_engine, small, images)


def test_unreadable_files_are_named_and_the_rest_is_scored(small_engine, tmp_path):
    cv2 = pytest.importorskip("cv2")

    good, bad, gone = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "gone.png"
    cv2.imwrite(str(good), pictures(1, 64)[0])
    bad.write_bytes(good.read_bytes()[:-40])
    result = small_engine.score([bad, good, gone])
    assert np.isnan(result.scores[[0, 2]]).all()
    assert np.isnan(result.maps[[0, 2]]).all()
    assert result.scores[1] == small_engine.score([good]).scores[0]
    assert "bad.png" in result.errors[0]
    assert "gone.png" in result.errors[2]
    assert set(result.errors) == {0, 2}


@pytest.mark.parametrize(("batch", "words"), [
    (np.zeros((2, 64, 64, 4), np.uint8), ["batch", "(N, H, W, 3)", "(2, 64, 64, 4)"]),
    (np.zeros((64, 64), np.uint8), ["batch", "(64, 64)"]),
    (np.zeros((2, 64, 64), np.int32), ["batch", "uint8", "int32"]),
    (np.zeros((0, 64, 64), np.uint8), ["batch", "at least one image"]),
    ([], ["batch", "at least one image"]),
    (np.full((1, 64, 64), np.nan, np.float32), ["batch", "finite", "nan"]),
    (np.full((1, 64, 64), np.inf, np.float32), ["batch", "finite", "inf"]),
    ([np.zeros((64, 64), np.uint8), np.zeros((8, 8, 2), np.uint8)], ["batch[1]", "(8, 8, 2)"]),
    ("image.png", ["batch", "list", "path"]),
    (None, ["batch", "NoneType"]),
])
def test_bad_batches(small_engine, batch, words):
    with pytest.raises(InputError) as caught:
        small_engine.score(batch)
    for word in words:
        assert word in str(caught.value)


def test_score_without_an_engine(monkeypatch):
    monkeypatch.setattr(_current, "_engine", None)
    with pytest.raises(InputError, match="build_engine"):
        scrd_fast.score(pictures(1, 64))


def test_bad_build_arguments(small_path, tmp_path):
    out = tmp_path / "model.scrd"
    with pytest.raises(InputError, match=r"backend: expected one of .*got 'magic'"):
        scrd_fast.build_engine(small_path, out, backend="magic")
    with pytest.raises(InputError, match=r"precision: expected one of .*got 'int3'"):
        scrd_fast.build_engine(small_path, out, precision="int3")
    with pytest.raises(InputError, match="buckets"):
        scrd_fast.build_engine(small_path, out, buckets=(8, 1))
    with pytest.raises(CheckpointError, match="gone"):
        scrd_fast.build_engine(tmp_path / "gone.safetensors", out)
    with pytest.raises(EngineFileError, match="gone"):
        scrd_fast.load_engine(tmp_path / "gone.scrd")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(small_path, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        scrd_fast.build_engine(small_path, tmp_path / "file" / "model.scrd", precision="fp32")


@pytest.mark.slow
def test_full_disk_leaves_nothing_behind(small_path, tmp_path):
    """A file-size limit makes every long write fail, as a full disk does."""
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import scrd_fast
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    scrd_fast.build_engine({str(small_path)!r}, {str(tmp_path / "model.scrd")!r},
                           backend="torch_eager", precision="fp32", buckets=(1,))
except scrd_fast.ScrdError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("OutputError"), done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_values_that_are_not_finite_fail_the_build_and_name_the_layer(small, tmp_path):
    from copy import deepcopy

    from scrd_fast.model.checkpoint import Checkpoint, save_checkpoint

    model = deepcopy(small.model)
    with torch.no_grad():
        model.student.layer2[0].conv1.weight.mul_(1e25)
        model.student.layer3[0].conv1.weight.mul_(1e25)
    path = save_checkpoint(Checkpoint(model, small.spec, small.config),
                           tmp_path / "model.safetensors")
    with pytest.raises(FidelityError, match=r"not finite, first in layer '.*student"):
        scrd_fast.build_engine(path, precision="fp32")
    assert not (tmp_path / "model.scrd").exists()


@pytest.mark.slow
def test_images_give_an_auroc_and_are_not_kept(small_path, tmp_path):
    images = pictures(120, 64)
    try:
        engine = scrd_fast.build_engine(small_path, tmp_path / "m.scrd", images=images,
                                        precision="fp32")
    except FidelityError as error:
        pytest.fail(str(error))
    assert engine.manifest.fidelity.probe == "images"
    pickle.loads(pickle.dumps(engine)).close()  # one that was built, not loaded, travels, too
    assert images[0].tobytes() not in (tmp_path / "m.scrd").read_bytes()


def score_elsewhere(engine, images):
    """In a spawned process, which has no current engine of its own."""
    with pytest.raises(InputError, match=r"^score: expected an engine"):
        scrd_fast.score(images)
    return engine.score(images)


@pytest.mark.slow
def test_an_engine_and_its_results_travel(small_file):
    """To a spawned worker, as Ray's and joblib's: by the path of its file."""
    images = pictures(3, 64)
    with scrd_fast.load_engine(small_file) as engine:
        expected = engine.score(images)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply(score_elsewhere, (engine, images))
        np.testing.assert_array_equal(result.scores, expected.scores)
        np.testing.assert_array_equal(result.maps, expected.maps)
        assert scrd_fast.score(images, maps=False).maps is None  # the current one as before


@pytest.mark.slow
def test_a_copy_of_an_engine_is_one_of_its_own(small_file, tmp_path, monkeypatch):
    monkeypatch.chdir(small_file.parent)
    images = pictures(2, 64)
    with scrd_fast.load_engine(small_file.name, mode="throughput") as engine:
        monkeypatch.chdir(tmp_path)  # the name is not that of a file here
        scores = engine.score(images).scores
        for another in (copy.copy(engine), copy.deepcopy(engine)):
            assert another._again == engine._again  # mode and device, too
            np.testing.assert_array_equal(another.score(images).scores, scores)
            another.close()
        assert _current._engine is engine
        np.testing.assert_array_equal(engine.score(images).scores, scores)
    shutil.copy(small_file, tmp_path / "m.scrd")
    with scrd_fast.load_engine(tmp_path / "m.scrd") as engine:
        pickle.loads(pickle.dumps(engine)).close()
        packed = pickle.dumps(engine)
    scrd_fast.calibrate(tmp_path / "m.scrd", pictures(30, 64), fpr=0.05)
    with pytest.raises(EngineFileError, match=r"m\.scrd: expected the engine that was pickled"):
        pickle.loads(packed)


def test_what_does_not_travel_says_so(small_file):
    engine = scrd_fast.load_engine(small_file)
    pending = engine.submit(pictures(1, 64))
    with pytest.raises(InputError, match=r"pickle what pending\.result\(\) returns"):
        pickle.dumps(pending)
    pending.result()
    engine.close()
    for travel in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(ClosedError):
            travel(engine)


def test_paths_may_be_bytes(small_file, tmp_path):
    cv2 = pytest.importorskip("cv2")
    png = tmp_path / "a.png"
    cv2.imwrite(str(png), pictures(1, 64)[0])
    with scrd_fast.load_engine(bytes(small_file)) as engine:
        named = engine.score([bytes(png), str(png), png])
        assert named.errors == {}
        assert len(set(named.scores.tolist())) == 1
        with pytest.raises(InputError, match="got one path"):
            engine.score(bytes(png))
    with pytest.raises(InputError, match=r"^path: expected a path, got int"):
        scrd_fast.load_engine(5)


def test_maps_are_made_of_the_distances(small_engine, small, tmp_path):
    images = pictures(5, 64)
    result = small_engine.submit(images, distances=True).result()
    if backend_of(small_engine.manifest.backend).on_gpu:
        assert result.distances is None
        return
    assert [each.shape for each in result.distances] == [(5, 16, 16), (5, 8, 8), (5, 4, 4)]
    made = combine_distances([torch.from_numpy(each) for each in result.distances],
                             torch.from_numpy(result.scale_weights), small.spec)
    np.testing.assert_allclose(result.maps, made.map, atol=1e-5)
    np.testing.assert_array_equal(result.scores, small_engine.score(images).scores)
    for item in small_engine.stream(images, distances=True):
        for k in range(3):
            np.testing.assert_allclose(item.distances[k], result.distances[k][item.index],
                                       rtol=1e-4, atol=1e-6)
    (bad,) = small_engine.stream([tmp_path / "none.png"], distances=True)
    assert bad.error
    assert bad.distances is None
