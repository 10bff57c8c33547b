"""Fixtures of the picture formats' tests."""

import re

import numpy as np
import pytest

from scrd_fast.errors import DataError
from tests.support.pictures import read_image


@pytest.fixture
def read(tmp_path):
    def reader(data: bytes) -> np.ndarray:
        (tmp_path / "a.img").write_bytes(data)
        return read_image(tmp_path / "a.img")
    return reader


@pytest.fixture
def refused(tmp_path):
    def check(data: bytes, reason: str) -> None:
        path = tmp_path / "bad.img"
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{reason}"):
            read_image(path)
    return check
