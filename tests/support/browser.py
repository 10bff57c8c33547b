"""Chromium, as the tests of the pages use it."""

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
WIDE, NARROW = (1280, 900), (390, 844)
SCHEMES = ("light", "dark")


class Browser:
    """Without a window, and without a network: no host is found but this one."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new",
                         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                         "--disable-background-networking", "--disable-dev-shm-usage",
                         *(["--no-sandbox"] if getattr(os, "geteuid", int)() == 0 else [])):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.driver.set_script_timeout(60)

    def open(self, path: Path) -> None:
        self.driver.get(path.as_uri())
        self.wait("return performance.getEntriesByName('gallery drawn').length > 0")

    def run(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def wait(self, code, *arguments):
        WebDriverWait(self.driver, 20, 0.02).until(lambda _: self.run(code, *arguments))

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def show(self, size, scheme="light", media=""):
        width, height = size
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [
            {"name": "prefers-color-scheme", "value": scheme}]})

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self):
        return self.driver.switch_to.active_element

    def threshold(self) -> float:
        return float(self.run("return byId('threshold-value').value"))

    def set_range(self, identifier, value):
        """As if its handle were dragged."""
        self.run("const e = document.getElementById(arguments[0]); e.value = arguments[1];"
                 " e.dispatchEvent(new Event('input'))", identifier, value)

    def pixels(self, selector):
        """Of a canvas, (H, W, 4)."""
        width, height, values = self.run("""
            const shown = document.querySelector(arguments[0]);
            const {width, height} = shown;
            const copy = new OffscreenCanvas(width, height).getContext(
              '2d', {willReadFrequently: true});
            copy.drawImage(shown, 0, 0);
            return [width, height, Array.from(copy.getImageData(0, 0, width, height).data)]""",
            selector)
        return np.array(values, np.uint8).reshape(height, width, 4)

    def check_access(self):
        """Whether axe finds what keeps people out, in both colour schemes and widths."""
        found = importlib.util.find_spec("axe_playwright_python")
        if found is None:
            pytest.skip("needs axe, which axe-playwright-python brings")
        self.run((Path(found.submodule_search_locations[0]) / "axe.min.js").read_text("utf-8"))
        for scheme in SCHEMES:
            for size in (WIDE, NARROW):
                self.show(size, scheme)
                violations = self.driver.execute_async_script("""
                    const done = arguments[0];
                    const rules = {'target-size': {enabled: true}};
                    axe.run(document, {resultTypes: ['violations'], rules}).then(
                      (found) => done(found.violations.map(
                        (v) => [v.impact, v.id, v.nodes[0].html])),
                      (error) => done(String(error)))""")
                assert isinstance(violations, list), violations
                assert [each for each in violations if each[0] in ("serious", "critical")] == [], (
                    scheme, size)

    def cards(self):
        """Which images the page of the gallery shows."""
        return self.run("return [...document.querySelectorAll('#cards li')].map("
                        "(card) => Number(card.dataset.at))")

    def open_first(self, order="falling"):
        """Open the first image of the gallery by keyboard; returns its card."""
        Select(self.find("#sort")).select_by_value(order)
        card = self.find("#cards button")
        self.run("arguments[0].focus()", card)
        self.press(Keys.ENTER)
        self.wait("return byId('viewer').open && byId('viewer-facts').children.length > 0")
        return card

    def wait_for_name(self, name):
        """Until the viewer shows the image of that name."""
        self.wait("return byId('viewer-name').textContent === arguments[0]", name)
