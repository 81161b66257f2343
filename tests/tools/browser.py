"""Debian's headless Chromium, driven through Selenium; opening a page of a study in it, timed.

python -m tests.tools.browser --patients 40 --rows 12 --seeds 5     how large its page is, and how soon it is drawn
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = ("headless=new", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update")
FLAGS += ("disable-sync", "disable-extensions", "disable-dev-shm-usage", "window-size=1000,800", "hide-scrollbars")
PATIENCE = 60  # seconds until a page that is not ready has failed
READY = "return document.documentElement.dataset.ready"
TIMES = 5


def programs() -> tuple[str, str] | None:
    """Chromium and its driver, where both are installed."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    return found if all(found) else None


@contextmanager
def opened_browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own, whose processes end with the block."""
    chromium, driver = programs()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    if os.geteuid() == 0:  # its sandbox is not for root, whom a container's programs often run as
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the page is not ready")
        time.sleep(0.02)


def open_page(browser: webdriver.Chrome, page: Path) -> float:
    """Opens a page and waits until all of it is drawn; returns the seconds."""
    begin = time.monotonic()
    browser.get(page.as_uri())
    wait_for(lambda: browser.execute_script(READY))
    return time.monotonic() - begin


def cpu_seconds(browser: webdriver.Chrome, page: Path) -> float:
    """CPU time of the page's own thread until all of it is drawn, which other programs on the machine change little."""
    browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    open_page(browser, page)
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return next(each["value"] for each in metrics if each["name"] == "TaskDuration")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("patients", 40), ("rows", 12), ("seeds", 5), ("epochs", 100)):
        parser.add_argument(f"--{name}", type=int, default=number)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fake_study import add_evaluation, make_study

    from study.reading import open_study
    from study.report import PAGE, write_report

    rows = ["noadap", *(f"row{n}" for n in range(1, args.rows - 1)), "fs"]
    with tempfile.TemporaryDirectory() as root:
        folder = make_study(Path(root) / "toy/study", rows, range(args.seeds), args.patients, args.epochs)
        names = [f"Case{n:02d}" for n in range(args.patients)]
        for place, row in enumerate(rows):
            add_evaluation(folder / "seed0" / row, names, place / len(rows), (20, 96, 96))
        begin = time.monotonic()
        write_report(open_study(folder))
        print(f"written in {time.monotonic() - begin:.0f} s: {(folder / PAGE).stat().st_size / 1e6:.1f} MB")
        with opened_browser(Path(root) / "profile") as browser:
            seconds = [open_page(browser, folder / PAGE) for _ in range(TIMES)]
            busy = cpu_seconds(browser, folder / PAGE)
        first, *again = seconds
        print(f"drawn after {first:.2f} s in a browser that just started, then after {statistics.median(again):.2f} s")
        print(f"CPU time of the page alone: {busy:.2f} s; load of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
