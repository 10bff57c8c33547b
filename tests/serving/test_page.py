"""The service's page in a real Chromium."""

import cv2
import numpy as np
import pytest

from tests.serving.conftest import run_service
from tests.support.models import pictures

pytest.importorskip("selenium", reason="drives the browser")

from tests.support.browser import NARROW, WIDE


@pytest.fixture
def page(chromium, service):
    """The page of a service. After each test: no error was told, and nobody else was asked."""
    host, port = service.http
    chromium.show(WIDE)
    chromium.driver.get_log("browser")
    address = f"http://{host}:{port}/"
    chromium.driver.get(address)
    chromium.wait("return document.querySelectorAll('#models tr').length > 0")
    yield chromium
    assert chromium.driver.get_log("browser") == []
    asked = chromium.run("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert [each for each in asked if not each.startswith((address, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A picture wider than high."""
    path = tmp_path_factory.mktemp("image") / "a.png"
    cv2.imwrite(str(path), pictures(1, 96, seed=3)[0][:48])
    return path


@pytest.mark.slow
def test_health_and_models(page):
    assert page.text("#health") == "The service is ready."
    cells = [each.text for each in page.all("#models td")]
    assert cells[:3] == ["m", "1", "scrd_fast_openvino_fp32"]


@pytest.mark.slow
def test_an_image_and_its_overlay(page, image, engine):
    page.find("#file").send_keys(str(image))
    page.wait("return document.getElementById('result').textContent.startsWith('Score')")
    expected = engine.score([image])
    assert page.text("#result").startswith(f"Score {expected.scores[0]:.5g}"[:10])
    page.wait("return !document.getElementById('picture').hidden")
    shown = page.pixels("#overlay").astype(int)
    assert shown.shape == (256, 512, 4)
    assert "of its own range" in page.text("#caption")
    # Nothing of the map at strength 0, and most where it is largest.
    page.set_range("strength", "0")
    plain = page.pixels("#overlay").astype(int)
    original = cv2.resize(cv2.imread(str(image))[..., ::-1], (512, 256))
    assert np.abs(plain[..., :3] - original).mean() < 8
    page.set_range("strength", "1")
    changed = np.abs(page.pixels("#overlay").astype(int) - plain).sum(2)
    row, column = np.unravel_index(expected.maps[0].argmax(), expected.maps[0].shape)
    around = changed[row * 4 : row * 4 + 4, column * 8 : column * 8 + 8]
    assert around.mean() > changed.mean()


@pytest.mark.slow
def test_a_file_that_is_no_image(page, tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    page.find("#file").send_keys(str(tmp_path / "a.txt"))
    page.wait("return document.getElementById('result').textContent.includes('got other content')")
    assert not page.find("#picture").is_displayed()


@pytest.mark.slow
def test_everybody_can_use_it(page, image):
    page.find("#file").send_keys(str(image))
    page.wait("return !document.getElementById('picture').hidden")
    page.check_access()
    page.show(NARROW)
    assert page.run("return document.documentElement.scrollWidth") <= NARROW[0]


@pytest.mark.slow
def test_with_a_token(chromium, served_file, tmp_path):
    (tmp_path / "token").write_text("a-token-of-some-length")
    with run_service(tmp_path / "log", f"m={served_file}", "--token-file",
                     tmp_path / "token") as running:
        host, port = running.http
        chromium.driver.get(f"http://{host}:{port}/")
        chromium.wait("return !document.getElementById('access').hidden")
        chromium.find("#token").send_keys("a-token-of-some-length")
        chromium.find("#access button").click()
        chromium.wait("return document.querySelectorAll('#models tr').length > 0")
        chromium.driver.get("about:blank")
        chromium.driver.get_log("browser")
