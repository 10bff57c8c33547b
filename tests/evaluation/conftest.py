"""Fixtures that more than one file here uses."""

import pytest

import scrd_fast
from tests.evaluation.data_sets import NAMES, make_table, spoiled
from tests.support.models import organs


@pytest.fixture(scope="module")
def engine(small_file):
    with scrd_fast.load_engine(small_file) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """A table of six patients with four test images each, of whom three have a lesion, and
    labelled validation images of two others."""
    normal, (sick, masks) = organs(24, 72, 5)[:, :60], spoiled(16, 6)
    rows = []
    for i in range(24):
        lesion = i % 4 > 1 and i < 12
        rows.append((f"t{i:02}", sick[i] if lesion else normal[i], int(lesion), NAMES[i // 4],
                     "test", "left" if i % 2 else "right", masks[i] if lesion else None))
    for i in range(8):
        label = int(i > 4)
        rows.append((f"v{i}", organs(8, 72, 7)[i] if not label else spoiled(8, 8)[0][i], label,
                     f"Wotan{i % 2}", "validation", "", None))
    return make_table(tmp_path_factory.mktemp("table") / "set.csv", rows)
