"""A page as a whole in a real Chromium: who can use it, what hostile names do to it, what may leave
it, paper, and how soon it is there."""

from itertools import chain

import numpy as np
import pytest

import scrd_fast
from scrd_fast.report.build_report import write_build_report
from scrd_fast.report.run_folder import read_run
from scrd_fast.report.run_report import show_text, write_report
from tests.report.generated import HOSTILE, add_failures, make_hostile, make_images, write_run

pytest.importorskip("openvino", reason="scores by OpenVINO")
pytest.importorskip("jinja2", reason="needs the report extra")
pytest.importorskip("selenium", reason="drives the browser")

from selenium.webdriver.common.keys import Keys

from tests.support.browser import NARROW, WIDE


@pytest.fixture(scope="module")
def hostile(calibrated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    write_run(folder, calibrated, make_hostile(make_images(len(HOSTILE), slices=0)),
              "</script><script>document.title='owned'</script>")
    write_report(read_run(folder), folder / "report.html", patients=True)
    return folder / "report.html"


@pytest.mark.slow
def test_everything_is_reached_by_keyboard_and_has_a_name(browser, report_page):
    browser.open(report_page)
    browser.run("document.activeElement.blur(); scrollTo(0, 0)")
    reached = []
    for _ in range(120):
        browser.press(Keys.TAB)
        told = browser.run("const e = document.activeElement; return e.id || e.textContent.trim()"
                           ".slice(0, 40)")
        if reached and told == reached[0]:
            break
        reached.append(told)
    assert reached[0] == "To the decision"
    for name in ("Gallery", "Model card", "threshold", "threshold-value", "threshold-reset", "sort",
                 "filter-name", "filter-label", "filter-group", "filter-decision", "page-after",
                 "groups-search", "patients-search"):
        assert name in reached
    places = [reached.index(name) for name in ("threshold", "sort", "page-after", "groups-search")]
    assert places == sorted(places)
    for element in browser.all("main button, main input, main select, [role=region], svg[role]"):
        assert element.accessible_name.strip(), element.get_attribute("outerHTML")
    browser.open_first()
    shown = [each for each in browser.all("dialog button, dialog input, dialog canvas")
             if each.is_displayed()]
    assert len(shown) == 13
    for element in shown:
        assert element.accessible_name.strip(), element.get_attribute("outerHTML")


@pytest.mark.slow
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nothing_scrolls_sideways(browser, report_page, hostile, size):
    browser.show(size)
    for path in (report_page, hostile):
        browser.open(path)
        assert browser.run("return document.documentElement.scrollWidth") <= size[0]
        browser.open_first()
        assert browser.run("const v = byId('viewer'); return v.scrollWidth - v.clientWidth") <= 0
        small = browser.run(
            "return [...document.querySelectorAll('button, select, input, nav a')].map((e) =>"
            " [e.outerHTML, e.getBoundingClientRect()]).filter(([_, b]) => b.width > 0 &&"
            " (b.width < 24 || b.height < 24)).map(([html]) => html)")
        assert small == []


def test_hostile_names_are_shown_as_they_are(browser, hostile):
    browser.open(hostile)
    assert browser.driver.title == "Report on m.scrd"
    names = browser.run(
        "return [...document.querySelectorAll('#cards .name')].map((e) => e.textContent)")
    assert set(names) == {show_text(name) for name in HOSTILE}
    assert browser.all("#cards img, #cards script, #cards b, dialog b, dialog script") == []
    browser.open_first()
    assert "DOE^JANE\"><svg onload=alert(3)>" in browser.text("#viewer-facts")
    assert browser.run("return document.scripts.length") == 2


def test_the_policy_stops_what_would_run_or_leave(report_page, chromium):
    """Even if a text became HTML. What the browser then tells is taken from its log."""
    chromium.open(report_page)
    done = chromium.driver.execute_async_script("""
        const done = arguments[0];
        const make = (name, values) => Object.assign(document.createElement(name), values);
        document.body.append(make('script', {textContent: "document.title = 'owned'"}));
        const holder = make('div', {});
        holder.innerHTML = '<img src=x onerror="document.title=\\'owned\\'">';
        document.body.append(holder, make('img', {src: 'https://example.org/x.png'}));
        const stopped = (what) => what.then(() => false, () => true);
        stopped(fetch('https://example.org/')).then(
            (fetched) => setTimeout(() => done([fetched, document.title]), 200));""")
    assert done == [True, "Report on m.scrd"]
    told = chromium.driver.get_log("browser")
    assert len([each for each in told if "Content Security Policy" in each["message"]]) >= 4


@pytest.mark.slow
def test_runs_without_labels_or_images(browser, small_file, tmp_path):
    with scrd_fast.load_engine(small_file) as engine:
        folder = write_run(tmp_path / "run", engine, make_images(30, labelled=False, slices=0))
        empty = write_run(tmp_path / "empty", engine, add_failures())
        same = write_run(tmp_path / "same", engine, chain(*(make_images(1) for _ in range(3))))
    for number, each in enumerate((folder, empty, same)):
        write_report(read_run(each), tmp_path / f"{number}.html")
    browser.open(tmp_path / "0.html")
    scores = np.array([row.score for row in read_run(folder).rows], np.float32)
    assert browser.text("#status").startswith("15 of 30 images above")  # begins in the middle
    browser.find("#threshold").send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert browser.text("#status").startswith(f"{len(scores) - 1} of 30 images above")
    assert browser.all("#confusion, #roc, #pr") == []
    browser.open_first()
    browser.open(tmp_path / "1.html")
    assert browser.text("#status").startswith("0 of 0 images above")
    assert browser.cards() == []
    browser.open(tmp_path / "2.html")
    browser.find("#threshold").send_keys(Keys.HOME)
    assert browser.text("#status").startswith("3 of 3 images above")
    browser.find("#threshold").send_keys(Keys.END)
    assert browser.text("#status").startswith("0 of 3 images above")


@pytest.mark.slow
def test_axe_finds_nothing_serious(browser, report_page):
    browser.open(report_page)
    browser.check_access()
    browser.open_first()
    browser.check_access()


@pytest.mark.slow
def test_the_page_of_a_build(browser, small_file, tmp_path):
    write_build_report(small_file, tmp_path / "build.html")
    browser.driver.get((tmp_path / "build.html").as_uri())
    browser.check_access()
    browser.show(NARROW)
    assert browser.run("return document.documentElement.scrollWidth") <= NARROW[0]
    assert len(browser.all("svg .point")) == 1


def test_print(browser, report_page):
    """On paper: no controls, light, all tables and the gallery's page."""
    browser.open(report_page)
    browser.show(WIDE, "dark", media="print")
    assert not any(each.is_displayed() for each in browser.all("nav, .controls, .pages"))
    assert browser.find("#cards canvas").is_displayed()
    assert browser.find("#confusion").is_displayed()
    assert browser.run("return getComputedStyle(document.body).backgroundColor"
                       ) == "rgb(255, 255, 255)"
    assert browser.run("return getComputedStyle(document.querySelector('.scroll')).overflow"
                       ) == "visible"


@pytest.mark.slow
def test_a_thousand_images_open_in_two_seconds(chromium, calibrated, tmp_path):
    """From navigation to the gallery's first page; the best of three."""
    folder = write_run(tmp_path / "run", calibrated, make_images(1000))
    write_report(read_run(folder), tmp_path / "r.html")
    times = []
    for _ in range(3):
        chromium.open(tmp_path / "r.html")
        times.append(chromium.run(
            "return performance.getEntriesByName('gallery drawn')[0].startTime"))
    print(f"{(tmp_path / 'r.html').stat().st_size / 1e6:.1f} MB, drawn after {times} ms")
    assert min(times) < 2000
