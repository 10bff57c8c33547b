"""Results of scoring are handed on by series, when they are complete and never again."""

from pathlib import Path

import numpy as np
import pytest

from scrd_fast.data.decode.image import Source
from scrd_fast.engine.stream import Scored
from scrd_fast.errors import DataError, OutputError
from scrd_fast.outputs.by_series import (
    check_shared,
    collect_by_series,
    group_files,
    tell_shared,
)


def result(number, path, frame=None):
    return Scored(number, Source(path, frame=frame), None, np.float32(0), None, np.zeros(3))


def make_groups(series):
    """Files with the series that each is of, by its first letter; "-" for a file that names none,
    "." for one that is no DICOM."""
    paths = [Path(f"{each}{i}") for i, each in enumerate(series)]
    sources = {path: Source(path, series=None if each == "-" else f"1.{each}")
               for path, each in zip(paths, series, strict=True) if each != "."}
    return paths, group_files(paths, sources)


@pytest.mark.parametrize(("series", "written"), [
    ("aab", {2: "a0 a1", 3: "b2"}),
    ("abab", {3: "a0 a2", 4: "b1 b3"}),
    ("abba", {3: "b1 b2", 4: "a0 a3"}),
    (".-a.", {1: ".0", 2: "-1", 3: "a2", 4: ".3"})])
def test_each_is_written_when_its_last_file_is_through(series, written):
    paths, groups = make_groups(series)
    found, number = {}, 0

    def write(group, items):
        assert {groups[item.path] for item in items} == {group}
        assert [item.source.frame for item in items] == [0, 1] * (len(items) // 2)
        found[number] = " ".join(map(str, dict.fromkeys(item.path for item in items)))

    with collect_by_series(groups, write) as take:
        for number, path in enumerate(paths):
            for frame in range(2):
                take(result(number, path, frame))
        number += 1
    assert found == written


@pytest.mark.parametrize("series", ["abcab", "aabbc"])
def test_after_a_failure_nothing_more_is_written(series):
    paths, groups = make_groups(series)
    tried = []

    def write(group, items):
        tried.append(group)
        raise OutputError("full")

    with collect_by_series(groups, write) as take, pytest.raises(OutputError, match="full"):
        give(take, paths)
    assert len(tried) == 1
    at_the_end = collect_by_series(groups, write)
    give(at_the_end.__enter__(), paths[:2])
    with pytest.raises(OutputError, match="full"):
        at_the_end.__exit__(None, None, None)
    assert len(tried) == 2


def give(take, paths):
    for number, path in enumerate(paths):
        take(result(number, path))


def test_an_error_beside_it_writes_nothing():
    paths, groups = make_groups("ab")

    def fail():
        with collect_by_series(groups, lambda group, items: pytest.fail("written")) as take:
            give(take, paths[:1])
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_what_files_of_a_series_share():
    one, two = Path("1"), Path("2")
    check_shared([(one, ("s", "r", None)), (two, ("s", "r", None))])
    for other, name in ((("t", "r", "p"), "study"), (("s", "q", "p"), "series"),
                        (("s", "r", "Zebedeus"), "patient"), (("s", "r", None), "patient")):
        with pytest.raises(DataError) as error:
            check_shared([(one, ("s", "r", "p")), (two, other)])
        assert str(error.value) == f"2: expected the {name} of 1, got another"


def test_reasons_are_told_with_three_names():
    many = [Path(str(i)) for i in (0, 0, 1, 2, 3, 3)]
    assert tell_shared({"of none": [], "of one": many[:2], "of three": many[:4], "more": many}) == [
        "of none", "of one: 1 file (0)", "of three: 3 files (0, 1, 2)",
        "more: 4 files (0, 1, 2 and 1 more)"]
