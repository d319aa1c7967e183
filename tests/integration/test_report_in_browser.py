"""The pages in a real browser: each loads from a file, asks nobody, complains of nothing, fits a phone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seatrial.check.reports import page as check_page
from seatrial.check.reports.model import pairs
from seatrial.report import build_report
from seatrial.runs.files import write_json

from ..unit.acceptance_samples import conclude, pair_samples, troubled
from ..unit.report_run import make_run
from ..unit.test_utilisation_page import made

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=["run", "used", "check"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "run":
        return build_report(make_run(tmp_path_factory.mktemp("runs"))).as_uri()
    if request.param == "used":
        run = make_run(tmp_path_factory.mktemp("used"))
        write_json(run.utilisation, made())
        return build_report(run).as_uri()
    page = tmp_path_factory.mktemp("check") / "check.html"
    page.write_text(check_page.render(conclude(troubled()), pairs(pair_samples(12))), encoding="utf-8")
    return page.as_uri()


def open_page(browser: Any, url: str, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(url)


def test_it_loads_without_a_word_and_without_a_request(browser: Any, url: str) -> None:
    open_page(browser, "about:blank")
    browser.get_log("performance")  # what the browser's own start page asked for
    open_page(browser, url)
    assert ("FAIL" if "check" in url else "better") in browser.find_element("id", "verdict").text
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    asked = [
        event["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (event := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert [u for u in asked if not u.startswith(("file:", "data:"))] == []
    assert url in asked


@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_it_fits_the_screen(browser: Any, url: str, width: int) -> None:
    open_page(browser, url, width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_light_and_dark(browser: Any, url: str) -> None:
    colours = []
    for dark in (False, True):
        open_page(browser, url, dark=dark)
        style = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        colours.append([brightness(c) for c in browser.execute_script(style)])
    (light_page, light_text), (dark_page, dark_text) = colours
    assert light_page > 200 > light_text
    assert dark_page < 60 < dark_text


def brightness(colour: str) -> float:
    return sum(float(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")[:3]) / 3


def test_pictures_for_people(browser: Any, url: str, tmp_path: Path) -> None:
    """The screenshots are real pictures; set SEATRIAL_SCREENSHOTS to keep them."""
    import os

    folder = Path(os.environ.get("SEATRIAL_SCREENSHOTS", str(tmp_path)))
    for name, width, height, dark in (
        ("light", 1100, 3600, False),
        ("dark", 1100, 3600, True),
        ("phone", 360, 3000, False),
    ):
        open_page(browser, url, width=width, height=height, dark=dark)
        picture = folder / f"{Path(url).stem}-{name}.png"
        assert browser.save_screenshot(str(picture))
        assert picture.stat().st_size > 20_000
