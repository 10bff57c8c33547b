"""What is made beside the table: each output may fail alone, at any time, and all else is there."""

from contextlib import contextmanager

import pytest

from scrd_fast.errors import OutputError
from scrd_fast.report.rows import ScoreRow
from scrd_fast.report.scores import keep_apart

ROWS = [ScoreRow(f"{i}.png") for i in range(3)]


@contextmanager
def output(log, name, fails=None):
    """Notes what it is told; fails at the beginning, at one of the rows or at the end."""
    if fails == "beginning":
        raise OutputError(name)
    try:
        def take(row, item):
            log.append((name, row.image))
            if fails == row.image:
                raise OutputError(name)

        yield take
    except BaseException as error:
        log.append((name, type(error).__name__))
        raise
    log.append((name, "whole"))
    if fails == "end":
        raise OutputError(name)


def run(*outputs):
    errors = []
    with keep_apart(outputs, errors) as take:
        for row in ROWS:
            take(row, None)
    return [str(error) for error in errors]


def told(log, name):
    return [what for each, what in log if each == name]


def test_all_are_given_all_rows_in_turn():
    log = []
    assert run(output(log, "a"), output(log, "b")) == []
    assert log == [*((name, row.image) for row in ROWS for name in "ab"),
                   ("a", "whole"), ("b", "whole")]


def test_those_that_fail_do_not_end_the_others():
    log = []
    errors = run(output(log, "a", "1.png"), output(log, "b"), output(log, "c", "end"),
                 output(log, "d", "0.png"), output(log, "e"))
    assert errors == ["d", "a", "c"]
    assert told(log, "a") == ["0.png", "1.png", "OutputError"]
    assert told(log, "d") == ["0.png", "OutputError"]
    for name in "bce":
        assert told(log, name) == ["0.png", "1.png", "2.png", "whole"]


def test_one_that_cannot_begin_ends_those_that_did():
    log = []
    with pytest.raises(OutputError, match="b"):
        run(output(log, "a"), output(log, "b", "beginning"), output(log, "c"))
    assert log == [("a", "OutputError")]


def test_what_else_happens_ends_all():
    log, errors = [], []

    def interrupt():
        with keep_apart([output(log, "a"), output(log, "b", "1.png")], errors) as take:
            for row in ROWS[:2]:
                take(row, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert told(log, "a")[-1] == "KeyboardInterrupt"
    assert told(log, "b")[-1] == "OutputError"
