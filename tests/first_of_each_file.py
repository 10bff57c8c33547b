"""A pytest plugin, `-p tests.first_of_each_file`: of each file only its first test runs."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    first = {item.path: item for item in reversed(items)}
    config.hook.pytest_deselected(items=[i for i in items if first[i.path] is not i])
    items[:] = first.values()
