"""The page of a study in a real browser: headless Chromium, driven through Selenium, from a file, without a network."""

import base64
import io

import numpy as np
import pytest
from fake_study import add_evaluation, make_study
from PIL import Image

from study.reading import open_study
from study.report import PAGE, write_report

pytest.importorskip("selenium", reason="no driver of a browser here: pip install -r tests/requirements.txt")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.tools.browser import open_page, opened_browser, programs, wait_for

if not programs():
    pytest.skip("no browser here: apt-get install chromium chromium-driver", allow_module_level=True)

NASTY = "<b onclick=alert(1)> $x$ %{x}"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    folder = make_study(root / "toy/study", ("noadap", "sfda", NASTY, "fs"), (0, 1), patients=4)
    names = [f"Case{n:02d}" for n in range(4)]
    for row, quality in (("noadap", 0.3), ("sfda", 0.8), (NASTY, 0.6)):
        add_evaluation(folder / "seed0" / row, names, quality, (6, 48, 56))
    write_report(open_study(folder))
    return folder / PAGE


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    """A browser in which the page is drawn."""
    with opened_browser(tmp_path_factory.mktemp("profile")) as driver:
        open_page(driver, page)
        yield driver
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def picture(element):
    """(W, H) colours of an element without its edge, each one number, wherever on the page it lies."""
    place = """scrollTo(0, 0);
        const {x, y, width, height} = arguments[0].getBoundingClientRect();
        return [Math.ceil(x) + 1, Math.ceil(y) + 1, Math.floor(width) - 3, Math.floor(height) - 3]"""
    clip = dict(zip(("x", "y", "width", "height"), element.parent.execute_script(place, element), strict=True))
    options = {"captureBeyondViewport": True, "clip": clip | {"scale": 1}}
    taken = element.parent.execute_cdp_cmd("Page.captureScreenshot", options)
    array = np.asarray(Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")).astype(int)
    return array @ [2**16, 2**8, 1]


def is_drawn(array):
    """Whether there is more to see than one colour with a frame."""
    _, counts = np.unique(array, return_counts=True)
    return len(counts) > 20 and counts.max() < 0.999 * counts.sum()


def test_nothing_is_wrong_and_nothing_is_fetched(browser):
    assert browser.get_log("browser") == []
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert [name for name in fetched if not name.startswith(("blob:", "data:"))] == []


def test_every_chart_is_drawn_and_can_only_be_saved(browser):
    charts = browser.find_elements(By.CSS_SELECTOR, ".chart")
    assert len(charts) >= 3
    for chart in charts:
        assert is_drawn(picture(chart)), chart.get_attribute("id")
        buttons = chart.find_elements(By.CSS_SELECTOR, ".modebar-btn")
        assert [button.get_attribute("data-attr") for button in buttons] in ([], [None])
        assert len(buttons) == 1  # plotly has one that sends a chart, names of patients and all, to its makers


def test_every_table_of_the_study_is_there(browser):
    """Those that the report makes: results and tests, ranks, failures, calibration, cost; choice and provenance."""
    count = "return document.querySelectorAll(`#${arguments[0]} table`).length"
    least = {"results": 3, "ranks": 1, "failures": 1, "reliability": 1, "choice": 1, "cost": 1, "provenance": 2}
    assert {name: number for name, number in least.items() if browser.execute_script(count, name) < number} == {}


def test_a_name_is_a_name(browser):
    assert browser.find_elements(By.CSS_SELECTOR, "[onclick]") == []
    shown = [each.text for each in browser.find_elements(By.CSS_SELECTOR, "#curves-chart .annotation-text")]
    assert NASTY in shown


def column(browser, number):
    cells = (
        "return [...document.querySelectorAll('#choice tbody tr')].map((row) => row.cells[arguments[0]].textContent)"
    )
    return browser.execute_script(cells, number)


def test_a_table_is_sorted_by_click_and_by_key(browser):
    heading = browser.find_elements(By.CSS_SELECTOR, "#choice thead th")[4]
    before = column(browser, 4)
    heading.click()
    wait_for(lambda: heading.get_attribute("aria-sort") == "ascending")
    assert column(browser, 4) == sorted(before, key=float) != before
    heading.find_element(By.CSS_SELECTOR, "[tabindex='0']").send_keys(Keys.ENTER)
    wait_for(lambda: heading.get_attribute("aria-sort") == "descending")
    assert column(browser, 4) == sorted(before, key=float, reverse=True)


def test_another_patient_is_drawn_over_the_others(browser):
    read = "const {y, text} = document.getElementById('patients-chart').data[2]; return [Array.from(y), text[0]]"
    before, _ = browser.execute_script(read)
    select = browser.find_element(By.ID, "patient")
    other = next(each for each in select.find_elements(By.TAG_NAME, "option") if not each.is_selected())
    other.click()
    after, name = browser.execute_script(read)
    assert name == other.text
    assert after != before


def test_slices_are_scrolled_by_key_and_by_wheel(browser):
    scan = browser.find_element(By.CSS_SELECTOR, ".scan")
    slider, told, shown = (scan.find_element(By.CSS_SELECTOR, part) for part in ("input", "output", ".slice"))
    slider.send_keys(Keys.HOME)
    assert told.text == "slice 1 of 6"
    first = picture(shown)
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert told.text == "slice 3 of 6"
    third = picture(shown)
    assert is_drawn(third)
    assert (first != third).any()
    turn = (
        "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: arguments[1], bubbles: true, cancelable: true}))"
    )
    browser.execute_script(turn, shown, 100)
    assert told.text == "slice 4 of 6"


def test_outlines_entropy_and_window_are_switched(browser):
    shown = browser.find_element(By.CSS_SELECTOR, ".slice")
    boxes = [
        browser.find_element(By.CSS_SELECTOR, f"[data-show={name}]") for name in ("truth", "before", "after", "entropy")
    ]
    sliders = [browser.find_element(By.CSS_SELECTOR, f"[data-number={name}]") for name in ("window", "level")]
    seen = [picture(shown)]
    for element, keys in [*((box, Keys.SPACE) for box in boxes), *((slider, Keys.PAGE_DOWN * 3) for slider in sliders)]:
        element.send_keys(keys)
        seen.append(picture(shown))
        assert (seen[-1] != seen[-2]).any(), element.get_attribute("outerHTML")
    for box in boxes:
        box.send_keys(Keys.SPACE)
    browser.find_element(By.CSS_SELECTOR, "[data-reset]").click()
    assert (picture(shown) == seen[0]).all()


def test_another_row_shows_its_own_patients(browser):
    select = browser.find_element(By.CSS_SELECTOR, "[data-row]")
    words = browser.find_element(By.CSS_SELECTOR, ".scan p")
    assert "after (sfda)" in words.text
    next(each for each in select.find_elements(By.TAG_NAME, "option") if each.text == NASTY).click()
    wait_for(lambda: f"after ({NASTY})" in words.text)


def test_a_page_is_light_dark_and_on_paper(browser):
    colours = {}
    for scheme in ("dark", "light"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        array = picture(browser.find_element(By.ID, "curves-chart"))
        colours[scheme] = np.median(array) % 2**8
    assert colours["dark"] < 60
    assert colours["light"] > 200
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000


def test_all_that_answers_can_be_reached_with_the_tab_key(browser):
    browser.execute_script(
        "window.reached = []; document.querySelector('.skip').focus();"
        "addEventListener('focusin', ({target}) => reached.push(target.dataset.show ?? target.id ?? target.tagName))"
    )
    browser.switch_to.active_element.send_keys(Keys.TAB * 120)
    assert {"truth", "before", "after", "entropy", "patient"} <= set(browser.execute_script("return reached"))
