"""The threshold of a page in a real Chromium, from file://, without a network: counts and curves
are scikit-learn's, intervals those of plain Python."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import t as student
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from scrd_fast.report.run_report import number_patients

pytest.importorskip("openvino", reason="scores by OpenVINO")
pytest.importorskip("jinja2", reason="needs the report extra")
pytest.importorskip("selenium", reason="drives the browser")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys


def check_counts(browser, scored):
    """The counts of the page are scikit-learn's, in the engine's float32."""
    labels, scores = scored
    value = np.float32(browser.threshold())
    (spared, alarms), (missed, found) = confusion_matrix(labels, scores > value, labels=[0, 1])
    names = ("spared", "alarms", "missed", "found")
    shown = {name: int(browser.text(f"#{name}")) for name in names}
    assert shown == {"spared": spared, "alarms": alarms, "missed": missed, "found": found}
    assert browser.text("#status").startswith(f"{(scores > value).sum()} of 300 images above")
    return shown


@pytest.mark.slow
def test_the_page_begins_with_the_runs_threshold(browser, report_page, scored, calibrated):
    browser.open(report_page)
    threshold = calibrated.decisions.threshold
    told = browser.run("return byId('threshold-value').value")
    assert np.float32(told) == np.float32(threshold)
    assert len(told) < 12
    shown = check_counts(browser, scored)
    assert shown["found"] + shown["alarms"] == calibrated.decisions.anomalous(scored[1]).sum()


@pytest.mark.slow
def test_the_threshold_by_keyboard(browser, report_page, scored):
    """Each step decides about exactly one score more or less; the ends and large steps, too."""
    browser.open(report_page)
    distinct = len(np.unique(scored[1]))
    slider = browser.find("#threshold")
    for key, step in [(Keys.ARROW_RIGHT, 1)] * 3 + [(Keys.ARROW_LEFT, -1)] * 5:
        before = int(slider.get_property("value"))
        slider.send_keys(key)
        assert int(slider.get_property("value")) == before + step
        check_counts(browser, scored)
    for key in (Keys.HOME, Keys.PAGE_UP, Keys.ARROW_UP, Keys.END, Keys.PAGE_DOWN):
        slider.send_keys(key)
        shown = check_counts(browser, scored)
        if key == Keys.HOME:
            assert shown["missed"] + shown["spared"] == 0
        if key == Keys.END:
            assert shown["found"] + shown["alarms"] == 0
            assert int(slider.get_property("value")) == distinct
    assert "images above" in slider.get_attribute("aria-valuetext")
    browser.find("#threshold-reset").send_keys(Keys.ENTER)
    check_counts(browser, scored)


@pytest.mark.slow
def test_every_place_of_the_slider(browser, report_page, scored):
    """Thresholds between neighbouring scores: as many scores lie above as the place says."""
    browser.open(report_page)
    values = browser.run("return [...Array(DISTINCT.length + 1).keys()].map(between)")
    distinct = np.unique(scored[1])
    above = [(distinct > np.float32(value)).sum() for value in values]
    assert above == [len(distinct) - place for place in range(len(distinct) + 1)]


@pytest.mark.slow
def test_the_threshold_as_a_number(browser, report_page, scored):
    browser.open(report_page)
    field = browser.find("#threshold-value")
    exact = float(scored[1][17])  # an image at the threshold is not above it
    for text in ("0.3", "-5", "7", repr(exact), "0.25"):
        field.send_keys(Keys.CONTROL, "a", Keys.NULL, text, Keys.ENTER)
        assert float(field.get_property("value")) == float(text)
        check_counts(browser, scored)
    field.send_keys(Keys.CONTROL, "a", Keys.DELETE, Keys.NULL, Keys.TAB)
    assert float(field.get_property("value")) == 0.25


@pytest.mark.slow
def test_the_threshold_by_pointer(browser, report_page, scored):
    browser.open(report_page)
    histogram = browser.find("#histogram")
    ActionChains(browser.driver).move_to_element(histogram).click_and_hold().move_by_offset(
        40, 0).release().perform()
    dragged = browser.threshold()
    line = browser.run(
        "const l = document.querySelector('#histogram .now').getBoundingClientRect(), h ="
        " byId('histogram').getBoundingClientRect();"
        " return l.left + l.width / 2 - h.left - h.width / 2")
    assert line == pytest.approx(40, abs=2)
    assert scored[1].min() < dragged < scored[1].max()
    check_counts(browser, scored)
    heights = browser.run("return [...document.querySelectorAll('#histogram rect[class=normal]')]"
                          ".length")
    assert heights > 5


def wilson(share, n, z=1.959963984540054):
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def interval(patients, hits):
    """Wilson's, of as many images as the design effect (Rao and Scott 1992) and the number of
    patients (Korn and Graubard 1998) leave: plain sums over patients of the definition."""
    by_patient = {}
    for patient, hit in zip(patients, hits, strict=True):
        by_patient.setdefault(patient, []).append(int(hit))
    n, m = len(hits), len(by_patient)
    share = sum(map(int, hits)) / n
    if n == m:
        return share, *wilson(share, n)
    if m == 1:
        return share, 0.0, 1.0
    effect = n / m
    if 0 < share < 1:
        residuals = [sum(each) - len(each) * share for each in by_patient.values()]
        variance = m / (m - 1) / n**2 * sum(r * r for r in residuals)
        found = max(1, variance / (share * (1 - share) / n))
        telling = min(sum(any(each) for each in by_patient.values()),
                      sum(not all(each) for each in by_patient.values()))
        alike = min(1, (found - 1) / (n / m - 1))
        effect = max(found, 1 + (n / m - 1) * (alike * telling + 1) / (telling + 1))
    return share, *wilson(share, n / effect * (1.959963984540054 / t_quantile(m - 1))**2)


def t_quantile(degrees, z=1.959963984540054):
    """By Cornish and Fisher's expansion, and held to SciPy's."""
    if degrees < 3:
        return (None, 12.706204736, 4.30265273)[degrees]
    found = (z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
             + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3))
    assert found == pytest.approx(student.ppf(0.975, degrees), rel=0.01)
    return found


@pytest.mark.slow
def test_intervals(browser, report_page, rows, scored):
    """As plain Python has them at thresholds all over, and SciPy's where patients do not matter."""
    browser.open(report_page)
    labels, scores = scored
    patients = np.array(number_patients(rows, named=False)[0])
    for place in (0, 1, 40, 150, 220, 299, 300):
        browser.set_range("threshold", place)
        value = np.float32(browser.threshold())
        above = scores > value
        for name, inside, hit in (
                ("sensitivity", labels == 1, above), ("specificity", labels == 0, ~above),
                ("precision", above, labels == 1)):
            if not inside.any():
                assert browser.text(f"#{name}") == "–"
                continue
            share, low, high = interval(patients[inside], hit[inside])
            assert browser.text(f"#{name}") == f"{share:.3f}"
            assert browser.text(f"#{name}-interval") == f"{low:.3f} to {high:.3f}"


@pytest.mark.slow
def test_estimates_of_any_patients(browser, report_page):
    browser.open(report_page)
    rng = np.random.default_rng(0)
    cases = [([1, 1, 1], [0, 0, 0]), ([3], [2]), ([4, 4], [4, 4]), ([2, 2], [2, 0]), ([1], [1])]
    for _ in range(40):
        sizes = rng.integers(1, 6, rng.integers(2, 30))
        cases.append((sizes.tolist(), rng.binomial(sizes, rng.random()).tolist()))
    found = browser.run("return arguments[0].map(([s, h]) => estimate(s, h))", cases)
    for (sizes, hits), each in zip(cases, found, strict=True):
        patients = np.repeat(np.arange(len(sizes)), sizes)
        told = np.concatenate([np.arange(s) < h for s, h in zip(sizes, hits, strict=True)])
        wanted = interval(patients, told)
        assert (each["value"], each["low"], each["high"]) == pytest.approx(wanted, abs=1e-12)
        if max(sizes) == 1:
            exact = binomtest(sum(hits), len(sizes)).proportion_ci(method="wilson")
            assert (each["low"], each["high"]) == pytest.approx((exact.low, exact.high), abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "most", "truth", "alike"), [
    (60, 4, 0.8, 0.3), (200, 4, 0.95, 0.8), (4, 20, 0.8, 0.3), (6, 20, 0.8, 0.8),
    (20, 20, 0.95, 0.3)])
def test_intervals_hold_the_truth(browser, report_page, patients, most, truth, alike):
    """1000 draws of patients with up to so many images, whose correlation is `alike`: 95 % hold it
    or a little more, where images taken for patients would in fewer than 90 %."""
    browser.open(report_page)
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, most + 1, (1000, patients))
    spread = (1 - alike) / alike
    hits = rng.binomial(sizes, rng.beta(truth * spread, (1 - truth) * spread, sizes.shape))
    found = browser.run("return arguments[0].map((s, k) => estimate(s, arguments[1][k]))",
                        sizes.tolist(), hits.tolist())
    held = np.mean([each["low"] <= truth <= each["high"] for each in found])
    assert 0.925 <= held <= 1
    images = sizes.sum(1)
    apart = [wilson(h / n, n) for h, n in zip(hits.sum(1), images, strict=True)]
    assert np.mean([low <= truth <= high for low, high in apart]) < 0.9


@pytest.mark.slow
def test_intervals_hold_the_truth_in_all_settings(browser, report_page):
    """What docs/report.md says of 162 settings, of 600 draws each."""
    browser.open(report_page)
    rng = np.random.default_rng(0)
    held = []
    for patients, most, truth, alike in itertools.product(
            (4, 6, 10, 20, 60, 200), (2, 4, 20), (0.5, 0.8, 0.95), (0, 0.3, 0.8)):
        sizes = rng.integers(1, most + 1, (600, patients))
        spread = (1 - alike) / max(alike, 1e-9)
        shares = rng.beta(truth * spread, (1 - truth) * spread, sizes.shape)
        found = browser.run("return arguments[0].map((s, k) => estimate(s, arguments[1][k]))",
                            sizes.tolist(), rng.binomial(sizes, shares).tolist())
        held.append(np.mean([each["low"] <= truth <= each["high"] for each in found]))
    print(f"held in {min(held):.1%} to {max(held):.1%}")
    assert min(held) >= 0.92


@pytest.mark.slow
def test_curves(browser, report_page, scored):
    browser.open(report_page)
    points = browser.run("return listPoints()")
    fpr, tpr, _ = roc_curve(*scored, drop_intermediate=False)
    np.testing.assert_allclose([p["alarms"] for p in points], fpr, atol=1e-12)
    np.testing.assert_allclose([p["recall"] for p in points], tpr, atol=1e-12)
    precision, recall, _ = precision_recall_curve(*scored)
    np.testing.assert_allclose([p["recall"] for p in points], recall[::-1], atol=1e-12)
    np.testing.assert_allclose([p["precision"] for p in points], precision[::-1], atol=1e-12)
    for place in (0, 100, 299):
        browser.set_range("threshold", place)
        shown = check_counts(browser, scored)
        recall = shown["found"] / (shown["found"] + shown["missed"])
        share = shown["alarms"] / (shown["alarms"] + shown["spared"])
        dot = browser.run("const d = document.querySelector('#roc .dot'); return [d.getAttribute("
                          "'cx'), d.getAttribute('cy')].map(Number)")
        assert dot == pytest.approx([56 + share * 332, 332 - recall * 322], abs=1e-6)
        label = browser.find("#roc").get_attribute("aria-label")
        assert f"sensitivity {recall:.3f}" in label


def test_groups_and_patients(browser, report_page, rows, scored):
    browser.open(report_page)
    browser.set_range("threshold", 200)
    value = np.float32(browser.threshold())
    for kind, of in (("groups", [row.group for row in rows]),
                     ("patients", [f"patient {n + 1}" for n in number_patients(
                         rows, named=False)[0]])):
        wanted = {}
        for name, label, score in zip(of, *scored, strict=True):
            if name is not None:
                row = wanted.setdefault(name, [0, 0, 0, 0, -np.inf])
                above = int(score > value)
                row[:] = (row[0] + 1, row[1] + (label == 1), row[2] + (label == 0), row[3] + above,
                          max(row[4], score))
        cells = browser.run("return [...byId(arguments[0]).rows].map((row) =>"
                            " [...row.cells].map((cell) => cell.textContent))", f"{kind}-rows")
        falling = sorted(wanted, key=lambda name: -wanted[name][4])
        assert [row[0] for row in cells] == falling[:50]
        for name, *numbers in cells:
            assert [float(each) for each in numbers] == pytest.approx(wanted[name], rel=1e-3)
    browser.find("#patients-search").send_keys("patient 7")
    names = browser.run("return [...byId('patients-rows').rows].map((row) =>"
                        " row.cells[0].textContent)")
    assert "patient 7" in names
    assert all(name.startswith("patient 7") for name in names)
