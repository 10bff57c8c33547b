"""The pace by which a service foresees when a request would be answered."""

import pytest

from scrd_fast.serving import pace as module
from scrd_fast.serving.pace import Pace


@pytest.mark.parametrize("together", [1, 8])
def test_the_pace_is_the_same_just_after_a_batch_and_just_before(monkeypatch, together):
    """Of images that end one by one, and of batches whose requests all end at once."""
    now = 100.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    pace = Pace()
    assert pace.seconds(5) == 0  # not known yet: a request is taken
    pace.begin(1000)
    for batch in range(80):
        now += 0.02 * together
        for _ in range(together):
            pace.measure(1)
            pace.end(1)
            if batch >= 20:
                assert pace.seconds(1) / (pace.images + 1) == pytest.approx(0.02, rel=0.25)


def test_a_pause_is_not_counted(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    pace = Pace()
    for _ in range(5):
        now += 1000
        pace.begin(2)
        now += 0.5
        pace.measure(2)
        pace.end(2)
    assert pace.seconds(4) == pytest.approx(1.0)
