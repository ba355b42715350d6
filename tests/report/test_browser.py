"""The page in a real browser: no error, every panel drawn, readable on a phone and on a desktop, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from hesse.report import make_report, write_files

from .small import classifier, images

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PANELS = {"check": 2, "samples": 2, "layers": 2, "curvature": 2, "spectrum": 3, "dimension": 1, "kfac": 1}  # figures of each
SIZES = {"phone": (390, 844), "desktop": (1280, 800)}
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = make_report(classifier(), nn.CrossEntropyLoss(), images(30), name="examples/some_long_file_name.py:function")
    return write_files(report, tmp_path_factory.mktemp("page"))[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.chrome.service import Service

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip(f"no {'Chromium' if program is None else 'chromedriver'} on this machine: the page was not opened")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        chrome = webdriver.Chrome(options=options, service=Service(driver))
    except WebDriverException as error:
        pytest.skip(f"Chromium does not start: {str(error.msg).splitlines()[0]}")
    yield chrome
    chrome.quit()


def open_page(browser: Chrome, page: Path, size: str, scheme: str = "light") -> None:
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def ask(browser: Chrome, script: str) -> Any:
    return browser.execute_script(script)


@pytest.mark.parametrize("size", SIZES)
def test_the_console_has_no_error_and_nothing_is_fetched(browser: Chrome, page: Path, size: str) -> None:
    browser.get_log("browser")
    open_page(browser, page, size)
    assert browser.get_log("browser") == []
    fetched = ask(browser, "return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []


@pytest.mark.parametrize("size", SIZES)
def test_every_panel_has_its_figures_drawn(browser: Chrome, page: Path, size: str) -> None:
    open_page(browser, page, size)
    for panel, figures in PANELS.items():
        drawn = ask(
            browser,
            f"""return [...document.querySelectorAll('#{panel} svg')].map(svg => {{
                const box = svg.getBoundingClientRect();
                const marks = [...svg.querySelectorAll('path, image, use')].filter(mark => {{
                    const area = mark.getBoundingClientRect(); return area.width > 2 || area.height > 2; }});
                return [box.width, box.height, marks.length]; }})""",
        )
        assert len(drawn) == figures, panel
        for width, height, marks in drawn:
            assert width > 280, panel
            assert height > 120, panel
            assert marks > 8, panel


@pytest.mark.parametrize("size", SIZES)
def test_nothing_sticks_out_to_the_side(browser: Chrome, page: Path, size: str) -> None:
    open_page(browser, page, size)
    assert ask(browser, "return document.documentElement.scrollWidth") <= SIZES[size][0]
    outside = ask(
        browser,
        """return [...document.body.querySelectorAll('*')]
            .filter(e => !e.closest('.scroll') && !e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.tagName + '.' + e.className)""",
    )
    assert outside == []


@pytest.mark.parametrize("size", SIZES)
def test_text_is_large_enough_and_inside_its_figure(browser: Chrome, page: Path, size: str) -> None:
    open_page(browser, page, size)
    texts = ask(
        browser,
        """return [...document.querySelectorAll('svg text')].map(t => {
            const box = t.getBoundingClientRect(), frame = t.ownerSVGElement.getBoundingClientRect();
            const scale = frame.width / t.ownerSVGElement.viewBox.baseVal.width;
            return [t.textContent, parseFloat(getComputedStyle(t).fontSize) * scale,
                    Math.max(frame.left - box.left, box.right - frame.right)]; })""",
    )
    assert len(texts) > 60
    assert [text for text in texts if text[1] < 6.5] == []  # the smallest are exponents
    assert sorted(text[1] for text in texts)[len(texts) // 2] > 9
    assert [text for text in texts if text[2] > 3] == []
    plain = ask(
        browser,
        """return [...document.querySelectorAll('p, td, th, dt, dd, li, figcaption, small')]
            .map(e => parseFloat(getComputedStyle(e).fontSize))""",
    )
    assert min(plain) >= 12


def test_the_samples_pictures_are_there(browser: Chrome, page: Path) -> None:
    open_page(browser, page, "phone")
    widths = ask(browser, "return [...document.querySelectorAll('.pictures img')].map(i => [i.naturalWidth, i.width])")
    assert len(widths) == 12
    assert all(natural > 0 and shown >= 60 for natural, shown in widths)


def test_the_cards_lead_to_their_panels(browser: Chrome, page: Path) -> None:
    open_page(browser, page, "desktop")
    targets = ask(browser, "return [...document.querySelectorAll('a.card')].map(a => a.getAttribute('href'))")
    assert targets == [f"#{panel}" for panel in PANELS]


def test_figures_follow_the_page_into_dark_mode(browser: Chrome, page: Path) -> None:
    script = """const text = document.querySelector('svg text');
        return [getComputedStyle(document.body).backgroundColor, getComputedStyle(text).fill]"""
    seen = {}
    for scheme in ("light", "dark"):
        open_page(browser, page, "desktop", scheme)
        seen[scheme] = ask(browser, script)
    brightness = {k: [sum(map(int, c[4:-1].split(","))) for c in colors] for k, colors in seen.items()}
    assert brightness["light"][0] > 600 > 200 > brightness["light"][1]
    assert brightness["dark"][0] < 100 < 600 < brightness["dark"][1]
