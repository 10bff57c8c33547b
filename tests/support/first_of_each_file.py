"""A pytest plugin, `-p tests.support.first_of_each_file`: once a test of a file has passed, its
others are skipped."""

from pathlib import Path

import pytest

_PASSED: set[Path] = set()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.path in _PASSED:
        pytest.skip("another test of this file has passed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.when == "call" and report.passed:
        _PASSED.add(item.path)
    return report
