"""Progress where there is no terminal: lines with the time left."""

import os
import re
import time

import pytest

from scrd_fast import progress
from scrd_fast.progress import duration, show_progress


@pytest.mark.parametrize(("seconds", "text"), [
    (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_lines_without_a_terminal(capfd, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.2)
    monkeypatch.setattr(progress, "NEXT_LINE", 0.2)
    with show_progress("loading") as report:
        time.sleep(0.5)  # nothing was reported yet
        report(0, 1000, "student")
        time.sleep(0.1)
        report(100, 1000, "student", loss=0.25, images_per_s=12.0, weights="0.1 0.9")
        time.sleep(0.3)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "loading, 0 s so far"
    counted = r"student 100 of 1000, \d+ s left, loss 0\.25  images/s 12  weights 0\.1 0\.9"
    assert any(re.fullmatch(counted, line) for line in lines), lines


def test_what_is_quick_or_quiet_prints_nothing(capfd):
    with show_progress("loading") as report:
        report(1, 2, "student")
    with show_progress("loading", enabled=False) as report:
        report(1, 2, "student", loss=1.0)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_counted_is_told_of_later(capfd, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.05)
    monkeypatch.setattr(progress, "NEXT_LINE", 30.0)
    with show_progress("loading"):
        time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_nobody_reads_it(monkeypatch):
    """A standard error that cannot be written to ends the lines, not the work."""
    monkeypatch.setattr(progress, "FIRST_LINE", 0.01)
    monkeypatch.setattr(progress, "NEXT_LINE", 0.01)
    read, write = os.pipe()
    os.close(read)
    broken = os.fdopen(write, "w")
    monkeypatch.setattr("sys.stderr", broken)
    with show_progress("loading") as report:
        time.sleep(0.1)
        report(1, 2, "student")
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        broken.close()
