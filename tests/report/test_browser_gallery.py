"""The gallery and the viewer of a page in a real Chromium, by keyboard and by pointer; overlays are
those of the package."""

import cv2
import numpy as np
import pytest

from scrd_fast.report.overlays import overlay
from scrd_fast.report.run_folder import read_run
from scrd_fast.report.run_report import number_patients

pytest.importorskip("openvino", reason="scores by OpenVINO")
pytest.importorskip("jinja2", reason="needs the report extra")
pytest.importorskip("selenium", reason="drives the browser")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select


@pytest.mark.slow
def test_sorting(browser, report_page, rows):
    browser.open(report_page)
    numbers, names = number_patients(rows, named=False)
    keys = {
        "falling": lambda i: -rows[i].score, "rising": lambda i: rows[i].score,
        "p": lambda i: rows[i].p_value,
        "name": lambda i: (rows[i].image != "/data/set/part0", rows[i].image, rows[i].frame or 0),
        "patient": lambda i: (int(names[numbers[i]].split()[1]), -rows[i].score)}
    for name, key in keys.items():
        Select(browser.find("#sort")).select_by_value(name)
        assert browser.cards() == sorted(range(300), key=key)[:24], name


@pytest.mark.slow
def test_filters(browser, report_page, rows, scored):
    browser.open(report_page)
    labels, scores = scored

    def shown():
        count = int(browser.text("#gallery-status").split()[0])
        assert len(browser.cards()) == min(count, 24)
        return count

    assert shown() == 300
    Select(browser.find("#filter-label")).select_by_value("1")
    assert shown() == labels.sum()
    assert all(labels[i] == 1 for i in browser.cards())
    Select(browser.find("#filter-group")).select_by_visible_text("lesion")
    assert shown() == sum(row.group == "lesion" for row in rows)
    Select(browser.find("#filter-group")).select_by_value("")
    Select(browser.find("#filter-label")).select_by_value("")
    browser.find("#filter-name").send_keys("VOLUME")
    assert shown() == 12
    browser.find("#filter-name").clear()
    browser.find("#filter-name").send_keys("nothing of that name")
    assert shown() == 0
    assert browser.find("#page-after").get_property("disabled")
    browser.find("#filter-name").send_keys(Keys.CONTROL, "a", Keys.DELETE, Keys.NULL)
    assert shown() == 300
    for place in (150, 280, 10):  # the gallery follows the threshold
        browser.set_range("threshold", place)
        value = np.float32(browser.threshold())
        above = scores > value
        for name, chosen in (("above", above), ("below", ~above), ("alarms", above & (labels == 0)),
                             ("missed", ~above & (labels == 1))):
            Select(browser.find("#filter-decision")).select_by_value(name)
            assert shown() == chosen.sum()
            assert all(chosen[i] for i in browser.cards())
    Select(browser.find("#filter-decision")).select_by_value("missed")
    browser.set_range("threshold", 290)
    assert shown() == ((scores <= np.unique(scores)[289]) & (labels == 1)).sum()


@pytest.mark.slow
def test_pages_and_badges(browser, report_page, scored):
    browser.open(report_page)
    order = np.argsort(-scored[1], kind="stable")
    after = browser.find("#page-after")
    for number in range(1, 13):
        assert browser.cards() == order[24 * (number - 1):24 * number].tolist()
        assert browser.text("#page-number") == f"page {number} of 13"
        after.send_keys(Keys.ENTER)
    assert len(browser.cards()) == 12
    assert after.get_property("disabled")
    browser.find("#page-before").click()
    browser.set_range("threshold", 0)
    badges = {each.text for each in browser.all("#cards .badge")}
    assert badges == {"normal: false alarm", "anomalous: found"}
    browser.set_range("threshold", 300)
    badges = {each.text for each in browser.all("#cards .badge")}
    assert badges == {"normal: spared", "anomalous: missed"}


def name_of(row):
    name = row.image.removeprefix("/data/set/")
    return name if row.frame is None else f"{name}, image {row.frame + 1}"


@pytest.mark.slow
def test_overlays_are_those_of_the_package(browser, report_page, run_folder, rows, calibrated):
    """The same colours over the same picture, to what 8 bits and another decoder of WebP change."""
    browser.open(report_page)
    for order, best in (("falling", max), ("rising", min)):
        browser.open_first(order)
        i = best(range(300), key=lambda k: rows[k].score)
        browser.wait_for_name(name_of(rows[i]))
        with read_run(run_folder).open_gallery() as gallery:
            picture = cv2.imdecode(np.frombuffer(gallery.picture(i), np.uint8), cv2.IMREAD_COLOR)
            heat = gallery.map(i)
        wanted = overlay(picture[..., ::-1], heat, *calibrated.decisions.maps.scale)
        found = browser.pixels("#viewer-picture")
        assert found.shape[:2] == picture.shape[:2]
        assert (found[..., 3] == 255).all()
        off = np.abs(found[..., :3].astype(int) - wanted)
        assert off.mean() < 1
        assert np.quantile(off, 0.999) <= 6
        browser.set_range("opacity", 0)
        off = np.abs(browser.pixels("#viewer-picture")[..., :3].astype(int) - picture[..., ::-1])
        assert off.mean() < 0.5
        browser.find("#viewer-reset").click()
        browser.find("#viewer-close").click()


@pytest.mark.slow
def test_the_viewer_by_keyboard(browser, report_page, rows):
    browser.open(report_page)
    falling = sorted(rows, key=lambda row: -row.score)
    names = [name_of(row) for row in falling[:3]]
    card = browser.open_first()
    browser.wait_for_name(names[0])
    facts = browser.text("#viewer-facts")
    for text in (f"score{falling[0].score:.4g}"[:8], "anomalous", falling[0].group, "patient "):
        assert text in facts
    assert browser.find("#viewer-before").get_property("disabled")
    browser.press(Keys.ARROW_RIGHT)
    browser.wait_for_name(names[1])
    browser.press(Keys.ARROW_RIGHT)
    browser.wait_for_name(names[2])
    browser.press(Keys.ARROW_LEFT)
    browser.wait_for_name(names[1])
    browser.find("#viewer-before").send_keys(Keys.ENTER)
    browser.wait_for_name(names[0])
    opacity = browser.find("#opacity")
    before = browser.pixels("#viewer-picture")
    opacity.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)  # moves the slider, not to another image
    assert browser.text("#opacity-value") == "67 %"
    assert browser.text("#viewer-name") == names[0]
    assert (browser.pixels("#viewer-picture") != before).any()
    captions = [each.text for each in browser.all("#distances figcaption")]
    weights = [float(each.rpartition(" ")[2]) for each in captions]
    assert weights == pytest.approx(falling[0].scale_weights, abs=5.1e-4)
    assert [browser.pixels(f"#distances figure:nth-child({k}) canvas").shape[0]
            for k in (1, 2, 3)] == [32, 16, 8]
    browser.press(Keys.ESCAPE)
    browser.wait("return !byId('viewer').open")
    assert browser.focused() == card


@pytest.mark.slow
def test_window_and_level(browser, report_page):
    browser.open(report_page)
    browser.open_first()
    browser.set_range("opacity", 0)
    plain = browser.pixels("#viewer-picture").astype(int)
    browser.set_range("window", 100)
    browser.set_range("level", 80)
    wanted = np.clip((plain[..., :3] - 80 + 50) * 255 / 100, 0, 255)
    np.testing.assert_allclose(browser.pixels("#viewer-picture")[..., :3], wanted, atol=0.51)
    picture = browser.find("#viewer-picture")
    ActionChains(browser.driver).move_to_element(picture).click_and_hold().move_by_offset(
        30, -20).release().perform()
    assert browser.text("#window-value") == "130"
    assert browser.text("#level-value") == "60"
    ActionChains(browser.driver).double_click(picture).perform()
    assert (browser.text("#window-value"), browser.text("#level-value")) == ("255", "127.5")
    assert (browser.pixels("#viewer-picture") == plain).all()


@pytest.mark.slow
def test_scales_of_colour(browser, report_page, run_folder, rows):
    browser.open(report_page)
    browser.open_first()
    assert (browser.text("#bar-low"), browser.text("#bar-high")) == ("0.12", "0.6")
    before = browser.pixels("#viewer-picture")
    browser.find("#own-scale").send_keys(Keys.SPACE)
    i = max(range(300), key=lambda k: rows[k].score)
    with read_run(run_folder).open_gallery() as gallery:
        low, high = np.quantile(gallery.map(i), [0.5, 0.999])
    assert float(browser.text("#bar-low")) == pytest.approx(low, rel=0.01)
    assert float(browser.text("#bar-high")) == pytest.approx(high, rel=0.05)
    assert (browser.pixels("#viewer-picture") != before).any()
    bar = browser.pixels("#viewer-bar")[0, :, :3]
    wanted = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_INFERNO)
    assert (bar == wanted[0, :, ::-1]).all()


@pytest.mark.slow
def test_slices_scroll(browser, report_page, rows):
    browser.open(report_page)
    browser.find("#filter-name").send_keys("volume")
    browser.open_first("name")
    slices = [f"volume.nii.gz, image {i + 1}" for i in range(12)]
    browser.wait_for_name(slices[0])
    assert browser.text("#slice-number") == "1 of 12 in this page"
    browser.press(Keys.ARROW_DOWN)
    browser.wait_for_name(slices[1])
    browser.press(Keys.ARROW_UP)
    browser.press(Keys.ARROW_UP)
    browser.wait_for_name(slices[0])
    browser.find("#slice").send_keys(Keys.ARROW_RIGHT)
    browser.wait_for_name(slices[1])
    browser.set_range("slice", 11)
    browser.wait_for_name(slices[11])
    wheel = "byId('viewer-picture').dispatchEvent(new WheelEvent('wheel', {deltaY: arguments[0]}))"
    browser.run(wheel, 100)
    browser.run(wheel, -100)
    browser.wait_for_name(slices[10])
    assert browser.text("#slice-number") == "11 of 12 in this page"
    browser.press(Keys.ESCAPE)
    browser.find("#filter-name").send_keys(Keys.CONTROL, "a", Keys.DELETE, Keys.NULL)
    Select(browser.find("#filter-label")).select_by_value("0")
    browser.open_first()
    assert "volume" not in browser.text("#viewer-name")
    assert not browser.find("#slice-row").is_displayed()


@pytest.mark.slow
def test_the_focus_stays_where_a_button_no_longer_does_anything(browser, report_page,
                                                                        rows):
    """Else the arrow keys of who uses no mouse would be dead."""
    focused = "return document.activeElement.id"
    browser.open(report_page)
    for _ in range(12):
        browser.find("#page-after").send_keys(Keys.ENTER)
    assert browser.text("#page-number") == "page 13 of 13"
    assert browser.run(focused) == "page-before"
    names = [name_of(row) for row in sorted(rows, key=lambda row: row.score)[:2]]
    browser.open_first("rising")
    browser.wait_for_name(names[0])
    browser.find("#viewer-after").send_keys(Keys.ENTER)
    browser.wait_for_name(names[1])
    browser.find("#viewer-before").send_keys(Keys.ENTER)
    browser.wait_for_name(names[0])
    assert browser.run(focused) == "viewer-after"
