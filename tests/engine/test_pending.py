"""Scores that are on their way: the terms of a batch, and waiting for it."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import scrd_fast
from scrd_fast.engine.engine import Pending
from scrd_fast.errors import CancelledError, InputError, NotFiniteError, OverloadedError
from tests.support.models import pictures
from tests.support.networks import Network, grey, scorer_of


@pytest.fixture
def slow():
    """A scorer whose batch of grey 0.5 ends when the event is set."""
    release = threading.Event()

    def wait(outputs):
        release.wait(30)
        return outputs

    scorer = scorer_of(Network(wait))
    yield scorer.submit(grey(0.5), maps=False), release
    release.set()
    scorer.close()


def test_waiting_for_a_result(slow):
    pending, release = slow
    start = time.perf_counter()
    assert not pending.wait(0.05)
    assert time.perf_counter() - start < 5
    assert not pending.done()
    release.set()
    assert pending.wait(30)
    assert pending.get()[0] == pytest.approx(1.5)
    with pytest.raises(InputError, match=r"^get: expected to be called once, got a second call"):
        pending.get()


def test_terms_of_a_batch():
    """More than may wait is refused, what is cancelled is dropped, what gathers goes together."""
    release = threading.Event()

    def wait(outputs):
        release.wait(30)
        return outputs

    scorer = scorer_of(Network(wait), buckets=(1, 4))
    # The network works on the first, and the second is prepared: neither waits any more.
    taken = [scorer.submit(grey(level), maps=False) for level in (0.7, 0.8)]
    while scorer.executions() < 1 or scorer.waiting() > 0:
        time.sleep(0.001)
    dropped = scorer.submit(grey(0.1, 0.2), maps=False, most_waiting=4)
    gathered = [scorer.submit(grey(level), maps=False, most_waiting=4, gather_for=0)
                for level in (0.3, 0.4)]
    with pytest.raises(OverloadedError, match="batch: expected at most 4 images waiting with it,"
                                              " got "):
        scorer.submit(grey(0.6), maps=False, most_waiting=4)
    dropped.cancel()
    # There is room where something was cancelled.
    gathered += [scorer.submit(grey(level), maps=False, most_waiting=4, gather_for=0)
                 for level in (0.5, 0.6)]
    release.set()
    with pytest.raises(CancelledError):
        dropped.get()
    for level, pending in zip((0.7, 0.8, 0.3, 0.4, 0.5, 0.6), taken + gathered, strict=True):
        assert pending.get()[0] == pytest.approx(3 * level)
    assert scorer.waiting() == 0
    assert scorer.executions() == 3  # the last four went together
    scorer.close()


def test_a_timeout_says_so(small_file):
    with scrd_fast.load_engine(small_file) as engine:
        pending = [engine.submit(pictures(4, 64, seed)) for seed in range(10)]
        with pytest.raises(TimeoutError, match=r"^result: expected scores within 0 s, got none"):
            pending[-1].result(timeout=0)
        assert pending[-1].result().scores.shape == (4,)


def test_an_error_is_raised_each_time():
    def overflow(outputs):
        outputs[0][:] = np.nan
        return outputs

    scorer = scorer_of(Network(overflow))
    pending = Pending(scorer.submit(grey(0.5), maps=False))
    for _ in range(2):
        with pytest.raises(NotFiniteError, match="network's output for image 0"):
            pending.result()
    scorer.close()


def test_two_threads_wait_for_one_result_each_with_its_own_patience(slow):
    pending, release = Pending(slow[0]), slow[1]
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(pending.result)
        time.sleep(0.1)
        with pytest.raises(TimeoutError, match=r"within 0.05 s"):
            pending.result(timeout=0.05)
        release.set()
        assert patient.result(30).scores == pytest.approx(1.5)
    for bad in (-1, math.nan):
        with pytest.raises(InputError, match=r"^timeout: expected seconds from 0, got"):
            pending.result(timeout=bad)
