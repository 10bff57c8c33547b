"""The native scorer: order, threads, errors, and what happens around closing."""

import gc
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.backends.registry import choose_backend
from scrd_fast.data.decode import ahead
from scrd_fast.data.decode.image import DecodedImage, Source
from scrd_fast.data.decode.read import FileRead, read_file
from scrd_fast.errors import (
    BackendUnavailable,
    ClosedError,
    InputError,
    NotFiniteError,
    OverloadedError,
)
from tests.support.models import EACH_BACKEND, pictures
from tests.support.networks import Network, grey, scorer_of


@pytest.fixture(scope="module", params=EACH_BACKEND)
def engine(request, small_files):
    with scrd_fast.load_engine(small_files(request.param), trust=True) as engine:
        yield engine


def same(ours, theirs) -> None:
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    np.testing.assert_array_equal(ours.maps, theirs.maps)
    np.testing.assert_array_equal(ours.scale_weights, theirs.scale_weights)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 11])
def test_submitted_batches_give_what_score_gives(engine, n):
    batches = [pictures(n, 64, seed) for seed in range(3)]
    expected = [engine.score(batch) for batch in batches]
    pending = [engine.submit(batch) for batch in batches]
    for ours, theirs in zip(pending, expected, strict=True):
        same(ours.result(), theirs)
        same(ours.result(timeout=0), theirs)
        assert ours.done()


def test_the_scorer_keeps_the_images(engine):
    expected = engine.score(pictures(3, 200, 7))
    pending = []
    for _ in range(4):
        batch = pictures(3, 200, 7)
        pending.append(engine.submit(batch))
        del batch
    gc.collect()
    overwriting = [np.full((3, 200, 200, 3), 9, np.uint8) for _ in range(8)]
    for ours in pending:
        same(ours.result(), expected)
    del overwriting


def scored_by_threads(engine, calls: int) -> None:
    batches = [pictures(1 + seed % 2, 64, seed) for seed in range(8)]
    expected = [engine.score(batch) for batch in batches]

    def work(thread: int) -> None:
        for call in range(calls):
            i = (thread + call) % len(batches)
            same(engine.score(batches[i]), expected[i])

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, thread) for thread in range(8)]:
            done.result()


def test_eight_threads_get_what_one_gets(engine):
    scored_by_threads(engine, 8)


@pytest.mark.slow
def test_eight_threads_get_what_one_gets_200_times_each(engine):
    scored_by_threads(engine, 200)


@pytest.mark.slow
def test_throughput_mode_gives_the_same_scores(small_files):
    out = small_files("openvino")
    with scrd_fast.load_engine(out) as engine:
        batches = [pictures(3, 64, seed) for seed in range(5)]
        expected = [engine.score(batch) for batch in batches]
    with scrd_fast.load_engine(out, mode="throughput") as engine:
        pending = [engine.submit(batch) for batch in batches]
        for ours, theirs in zip(pending, expected, strict=True):
            np.testing.assert_allclose(ours.result().scores, theirs.scores, rtol=1e-6)
            np.testing.assert_allclose(ours.result().maps, theirs.maps, rtol=1e-5)
    with pytest.raises(InputError, match=r"^mode: expected one of .*, got 'fast'$"):
        scrd_fast.load_engine(out, mode="fast")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino"])
def test_two_thousand_batches_leave_the_memory_as_it_was(small_path, tmp_path, backend):
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    batches = [pictures(n, side, n) for n, side in ((1, 64), (3, 100), (2, 128))]
    with scrd_fast.build_engine(small_path, tmp_path / "m.scrd", backend=backend,
                                precision="fp32") as engine:
        for i in range(100):
            engine.score(batches[i % 3])
        before = resident()
        for i in range(2000):
            engine.score(batches[i % 3])
        after = resident()
    assert after <= 1.02 * before, f"{before / 2**20:.1f} MB, then {after / 2**20:.1f} MB"


def test_batches_are_cut_into_pieces_in_order():
    network = Network()
    scorer = scorer_of(network)
    levels = np.linspace(0, 1, 7)
    scores, maps, weights, distances = scorer.submit(grey(*levels), maps=True).get()
    assert distances is None
    scorer.close()
    np.testing.assert_allclose(scores, 3 * levels, atol=1e-6)
    np.testing.assert_allclose(maps, np.broadcast_to(3 * levels[:, None, None], (7, 32, 32)),
                               atol=1e-5)
    assert weights.shape == (7, 3)
    assert network.calls == 4


def test_an_error_of_the_network_reaches_its_own_batch_only():
    def fail_on_second(outputs):
        if network.calls == 2:
            raise KeyError("torn")
        return outputs

    network = Network(fail_on_second)
    scorer = scorer_of(network)
    pending = [scorer.submit(grey(0.5), maps=False) for _ in range(3)]
    assert pending[0].get()[0] == pytest.approx(1.5)
    with pytest.raises(KeyError, match="torn"):
        pending[1].get()
    assert pending[2].get()[0] == pytest.approx(1.5)
    scorer.close()


def test_a_network_that_overflows_names_the_image():
    def overflow(outputs):
        outputs[1][-1] = np.inf
        return outputs

    scorer = scorer_of(Network(overflow), buckets=(1, 3))
    with pytest.raises(NotFiniteError, match=r"^batch: the network's output for image 2 is not"):
        scorer.submit(grey(0.1, 0.2, 0.3), maps=True).get()
    scorer.close()


@pytest.mark.parametrize(("then", "message"), [
    (lambda outputs: outputs[:3], "network: expected four arrays, got 3"),
    (lambda outputs: [o.astype(np.float64) for o in outputs],
     r"network\[0\]: expected float32 values, got float64 \(1, 8, 8\)"),
    (lambda outputs: [o[:, :1].copy() for o in outputs],
     r"network: expected 64 values of distances\[0\], got 8"),
    (lambda outputs: [*outputs[:3], outputs[3][:, :2].copy()],
     "network: expected 3 values of scale_weights, got 2"),
])
def test_a_network_of_the_wrong_shape(then, message):
    scorer = scorer_of(Network(then))
    with pytest.raises(InputError, match=message):
        scorer.submit(grey(0.1), maps=True).get()
    scorer.close()


@pytest.mark.parametrize(("batch", "error", "message"), [
    (np.zeros((0, 8, 8), np.uint8), InputError, "^batch: expected at least one image"),
    (np.zeros((2, 8, 0), np.uint8), InputError, "^batch: expected images of at least one pixel"),
    (np.zeros((2, 8, 8, 4), np.uint8), InputError, "^batch: expected uint8, uint16 or float"),
    (np.zeros((2, 8, 8), np.int32), InputError, "^batch: expected dtype uint8, uint16 or float32"),
    ([np.zeros((8, 8), np.uint8), np.zeros(8, np.uint8)], InputError,
     r"^batch\[1\]: expected \(H, W\) or \(H, W, 3\)"),
    ([], InputError, "^batch: expected at least one image, got an empty list"),
    ("image.png", InputError, "^batch: expected images, got paths"),
    (7, InputError, "^batch: expected uint8, uint16 or float .*, got int"),
    (np.full((2, 8, 8), np.nan, np.float32), NotFiniteError, "^batch: expected finite values"),
    ([np.zeros((8, 8), np.uint8), np.full((8, 8), np.inf)], NotFiniteError,
     r"^batch\[1\]: expected finite values"),
    (np.full((2, 8, 8), 200.0, np.float32), InputError,
     r"^batch\[0\]: expected float32 in \[0, 1\], got values from 200 to 200; pass integers as"),
    ([np.zeros((8, 8), np.uint8), torch.full((8, 8), -1.0, requires_grad=True)], InputError,
     r"^batch\[1\]: expected float32 in \[0, 1\], got values from -1 to -1"),
    (torch.zeros(2, 8, 8).to_sparse(), InputError, "^batch: expected a dense tensor with values"),
])
def test_batches_that_do_not_fit(engine, batch, error, message):
    with pytest.raises(error, match=message):
        engine.submit(batch)


def test_terms_of_an_engines_batch(engine):
    with pytest.raises(OverloadedError, match="expected at most 3 images waiting"):
        engine.submit(pictures(4, 64), most_waiting=3)
    for bad in (-1, 61, math.nan):
        with pytest.raises(InputError, match=r"^gather_for: expected seconds from 0 to 60"):
            engine.submit(pictures(1, 64), gather_for=bad)
    before = engine.executions()
    pending = engine.submit(pictures(2, 64), gather_for=0.01, most_waiting=8)
    np.testing.assert_array_equal(pending.result().scores, engine.score(pictures(2, 64)).scores)
    assert engine.executions() > before
    assert engine.waiting() == 0
    pending.cancel()  # too late, and no harm
    assert pending.result().scores.shape == (2,)


def test_files_that_cannot_be_scored_are_named(engine, tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")

    paths = [tmp_path / f"{i}.png" for i in range(11)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), pictures(1, 64, i)[0])
    paths[3].write_bytes(b"no image")
    bad = DecodedImage(np.full((8, 8), np.nan, np.float32), None, Source(paths[10]))
    monkeypatch.setattr(ahead, "read_file", lambda path, rule: (
        FileRead(path, (bad,)) if path == paths[10] else read_file(path, rule)))
    result = engine.score(paths, maps=False)
    assert sorted(result.errors) == [3, 10]
    assert str(paths[10]) in result.errors[10]
    assert np.isnan(result.scores[[3, 10]]).all()
    assert np.isfinite(np.delete(result.scores, [3, 10])).all()


@pytest.mark.slow
def test_both_of_two_closing_threads_wait_for_the_end(small_file):
    engine = scrd_fast.load_engine(small_file)
    pending = [engine.submit(pictures(8, 64)) for _ in range(20)]
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(lambda: (engine.close(), pending[-1].done())[1]) for _ in range(2)]
        assert all(d.result() for d in done)
    with pytest.raises(InputError, match=r"^score: expected an engine built or loaded"):
        scrd_fast.score(pictures(1, 64))


@pytest.mark.slow
def test_an_interrupted_build_ends_in_peace(small_path, tmp_path):
    """The scorer that was checking is closed on the way out: its thread must not outlive Python."""
    script = f"""
import scrd_fast
def progress(done, total, what):
    if what.startswith("checking") and done > 8:
        raise KeyboardInterrupt
scrd_fast.build_engine({str(small_path)!r}, {str(tmp_path / "m.scrd")!r}, backend="torch_eager",
                       precision="fp32", buckets=(1,), progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == -signal.SIGINT
    assert "terminate" not in done.stderr


def test_after_close_scoring_is_an_error(small_file):
    engine = scrd_fast.load_engine(small_file)
    pending = [engine.submit(pictures(2, 64, seed)) for seed in range(3)]
    engine.close()
    engine.close()
    assert all(p.result(timeout=0).scores.shape == (2,) for p in pending), "closing lost batches"
    with pytest.raises(ClosedError, match=r"^scorer: expected an open one, got one after close"):
        engine.score(pictures(1, 64))


@pytest.mark.slow
def test_a_forked_child_is_told_to_load_its_own(small_file):
    """And it ends in peace, with the engine that it inherited."""
    script = f"""
import os, sys, numpy as np, scrd_fast
engine = scrd_fast.load_engine({str(small_file)!r})
batch = np.zeros((2, 64, 64), np.uint8)
before = engine.score(batch).scores
pending = engine.submit(batch)
child = os.fork()
if child == 0:
    for wanted in (lambda: engine.score(batch), pending.result):
        try:
            wanted()
            sys.exit(3)
        except scrd_fast.ScrdError as error:
            if "fork" not in str(error):
                sys.exit(2)
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (engine.score(batch).scores == before).all()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True,
                          text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "last_line"), [
    ("openvino", ""), ("torch_eager", ""), ("openvino", "engine.close()"),
    ("torch_eager", "scrd_fast.engine.current._engine = None; del engine, pending"),
    ("openvino", "raise SystemExit(0)"),
])
def test_the_interpreter_may_end_at_any_time(small_files, backend, last_line):
    """Batches that nobody waited for neither hang nor crash the end of the process."""
    script = f"""
import numpy as np, scrd_fast
engine = scrd_fast.load_engine({str(small_files(backend))!r})
pending = [engine.submit(np.zeros((2, 64, 64), np.uint8)) for _ in range(20)]
{last_line}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("hidden", "message"), [
    ("openvino", "the openvino package is not installed; pip install openvino"),
    ("scrd_fast._openvino", "scrd_fast was installed where OpenVINO was not"),
])
def test_without_openvino_auto_takes_pytorch(hidden, message, monkeypatch):
    monkeypatch.setitem(sys.modules, hidden, None)
    assert choose_backend("auto", "cpu") == "torch_eager"
    with pytest.raises(BackendUnavailable, match=f"^backend 'openvino': {message}"):
        choose_backend("openvino", None)
