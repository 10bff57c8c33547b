"""An engine with a calibration, a run of generated images, and a browser that shows its page."""

from itertools import chain

import numpy as np
import pytest

from scrd_fast.report.run_folder import read_run
from scrd_fast.report.run_report import write_report
from tests.report.generated import add_failures, calibrate_engine, make_images, write_run


@pytest.fixture(scope="session")
def calibrated(small_file, tmp_path_factory):
    with calibrate_engine(tmp_path_factory.mktemp("calibrated") / "m.scrd", small_file) as engine:
        yield engine


@pytest.fixture(scope="session")
def run_folder(calibrated, tmp_path_factory):
    """300 images with labels, groups, patients, a volume, and three files that failed."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return write_run(folder, calibrated, chain(make_images(300), add_failures()))


@pytest.fixture(scope="session")
def rows(run_folder):
    """Of the images that were scored."""
    return [row for row in read_run(run_folder).rows if row.score is not None]


@pytest.fixture(scope="session")
def scored(rows):
    """Labels and scores."""
    return np.array([row.label for row in rows]), np.array([row.score for row in rows], np.float32)


@pytest.fixture(scope="session")
def report_page(run_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(read_run(run_folder), path)
    return path


@pytest.fixture
def browser(chromium):
    """After each test: no error was told, and nothing was asked for."""
    from tests.support.browser import WIDE

    chromium.show(WIDE)
    chromium.driver.get_log("browser")
    yield chromium
    assert chromium.driver.get_log("browser") == []
    assert chromium.run("return performance.getEntriesByType('resource').map((e) => e.name)"
                        ".filter((name) => !name.startsWith('data:'))") == []
