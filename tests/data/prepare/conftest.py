"""Fixtures that more than one file here uses."""

import pytest

from tests.data.prepare.trees import make_brain, make_isic, make_rsna


@pytest.fixture(scope="module")
def rsna(tmp_path_factory):
    return make_rsna(tmp_path_factory.mktemp("download") / "rsna")


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("download") / "brain")


@pytest.fixture(scope="module")
def isic(tmp_path_factory):
    return make_isic(tmp_path_factory.mktemp("download") / "isic")
