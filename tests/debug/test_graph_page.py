"""The page in a real browser: drawn, readable, searchable, by mouse and by keyboard, on a desktop and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from hesse.autodiff.graphs.compiled import ProgramGraph
from hesse.debug.graph import trace_graph

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SIZES = {"phone": (390, 844), "desktop": (1280, 800)}
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--hide-scrollbars",
)  # fmt: skip
BOX = """const boxes = [...document.querySelectorAll('#world .item')]
    .map(e => [e, e.querySelector('.shape').getBoundingClientRect()]);"""


def broken(x: Tensor) -> Tensor:
    y = x.log()
    return (y * x).sum()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    graphs = {
        "mlp": trace_graph(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)),
        "transformer": trace_graph(nn.TransformerEncoder(layer, 12), torch.randn(2, 3, 8)),
        "nan": trace_graph(broken, torch.tensor([1.0, -2.0, 3.0])),
        "twice": trace_graph(lambda x, w: torch.tanh(x @ w).square().mean(), torch.randn(5, 3), torch.randn(3, 4), order=2),
        "empty": trace_graph(lambda x: None, torch.ones(2)),
    }
    program = torch.fx.symbolic_trace(lambda x: torch.relu(x) + 1)
    graphs["program"] = ProgramGraph(program)  # pyright: ignore
    return {name: graph.save(folder / f"{name}.html") for name, graph in graphs.items()}


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


def open_page(browser: Chrome, page: Path, size: str = "desktop", scheme: str = "light") -> None:
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("browser")
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []


def ask(browser: Chrome, script: str) -> Any:
    return browser.execute_script(script)


def labels(browser: Chrome, kind: str = ".item") -> list[str]:
    return ask(browser, f"return [...document.querySelectorAll('#world {kind}')].map(e => e.getAttribute('aria-label'))")


def press(browser: Chrome, *keys: str) -> None:
    for key in keys:
        ask(browser, f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}}))")


def click(browser: Chrome, target: str) -> None:
    ask(browser, f"document.querySelector('{target}').dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")


def search(browser: Chrome, text: str) -> None:
    ask(
        browser,
        f"const s = document.getElementById('search'); s.focus(); s.value = '{text}'; s.dispatchEvent(new Event('input'))",
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["mlp", "transformer", "nan", "twice", "empty", "program"])
def test_pages_are_drawn_and_load_nothing(browser: Chrome, pages: dict[str, Path], name: str, size: str) -> None:
    open_page(browser, pages[name], size)
    assert ask(browser, "return performance.getEntriesByType('resource').length") == 0
    assert ask(browser, "return document.documentElement.scrollWidth") <= SIZES[size][0]
    sides = ask(browser, BOX + "return boxes.flatMap(([, b]) => [b.left, b.right])")
    assert min(sides, default=0) > -1
    if (name, size) != ("twice", "phone"):
        assert max(sides, default=0) < SIZES[size][0] + 1
    least = {"mlp": 20, "transformer": 15, "nan": 8, "twice": 30, "empty": 0, "program": 3}[name]
    assert len(labels(browser)) >= least


@pytest.mark.parametrize("name", ["mlp", "nan", "twice"])
def test_items_do_not_overlap_and_lie_within_their_modules(browser: Chrome, pages: dict[str, Path], name: str) -> None:
    open_page(browser, pages[name])
    wrong = ask(
        browser,
        BOX
        + """const closed = boxes.filter(([e]) => !e.classList.contains('open')), wrong = [];
        closed.forEach(([e, a], i) => closed.slice(i + 1).forEach(([f, b]) => {
            if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)
                wrong.push([e.getAttribute('aria-label'), f.getAttribute('aria-label')]); }));
        return wrong""",
    )
    assert wrong == []
    spilled = ask(
        browser,
        """return [...document.querySelectorAll('#world .item text')].filter(t => {
            const box = t.getBoundingClientRect(), shape = t.closest('.item').querySelector('.shape').getBoundingClientRect();
            const inside = box.left > shape.left - 1 && box.right < shape.right + 1;
            return !t.closest('.alarm') && !inside; }).map(t => t.textContent)""",
    )
    assert spilled == []


def test_forward_leads_down_and_backward_up(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["mlp"])
    tops = ask(
        browser,
        BOX + "return Object.fromEntries(boxes.map(([e, b]) => [e.getAttribute('aria-label').split(',')[0], b.top]))",
    )
    assert tops["input 5×3"] < tops["tanh 5×4"] < tops["output 5×2"]
    assert tops["cotangent of output 5×2"] > tops["tanh_backward 5×4"] > tops["∂ weight 4×3"]
    assert tops["tanh 5×4"] == tops["tanh_backward 5×4"]


def test_a_transformer_is_twelve_boxes_alike_at_first(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["transformer"])
    shut = labels(browser, ".item.shut")
    assert [label.split(",")[0] for label in shut] == [f"module layers.{number}" for number in range(12)]
    assert ask(browser, "return [...document.querySelectorAll('#world .twins text')].map(t => t.textContent)") == ["×12"] * 12
    colors = ask(browser, "return [...document.querySelectorAll('#world .twins rect')].map(t => getComputedStyle(t).fill)")
    assert len(set(colors)) == 1
    smallest = ask(browser, "return document.querySelector('#world .item.shut .label').getBoundingClientRect().height")
    assert smallest > 9


def test_modules_open_and_close_by_mouse_and_key(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["transformer"])
    before = len(labels(browser))
    key = ask(browser, "return document.querySelector('#world .item.shut').id")
    where = f"return document.querySelector('#{key} .shape').getBoundingClientRect().top"
    top = ask(browser, where)
    click(browser, f"#{key} .toggle")
    opened = labels(browser)
    assert len(opened) > before + 6
    assert [label for label in opened if "MultiheadAttention" in label]
    assert ask(browser, where) == pytest.approx(top, abs=1)
    assert ask(browser, "return document.activeElement.closest('#drawing') !== null")
    ask(browser, f"document.getElementById('{key}').focus()")
    press(browser, "Enter")
    assert len(labels(browser)) == before
    click(browser, "#deeper")
    assert len(labels(browser)) > 12 * 8
    click(browser, "#shallower")
    assert len(labels(browser)) == before


def test_search_opens_what_it_finds(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["transformer"])
    press(browser, "/")
    assert ask(browser, "return document.activeElement.id") == "search"
    search(browser, "softmax")
    found = ask(browser, "return [...document.querySelectorAll('#found [data-go]')].map(e => e.textContent)")
    assert len(found) == 24
    press(browser, "ArrowDown", "Enter")
    chosen = labels(browser, ".item.selected")
    assert len(chosen) == 1
    assert "softmax" in chosen[0]
    text = ask(browser, "return document.getElementById('details').innerText")
    assert "layers.1.self_attn" in text
    assert "test_graph_page.py" in text
    assert "float32" in text
    box = ask(
        browser, "const b = document.querySelector('.item.selected').getBoundingClientRect(); return [b.left, b.right, b.top]"
    )
    assert 0 < box[0] < box[1] < SIZES["desktop"][0] - 340
    assert box[2] > 50
    search(browser, "no such thing")
    assert ask(browser, "return document.getElementById('found').innerText") == "nothing found"


def test_what_is_not_finite_is_red_and_found_by_one_button(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["nan"])
    reds = [label.split(" ")[0] for label in labels(browser, ".item.bad")]
    assert {"log", "mul", "sum", "output"} <= set(reds)
    assert {"x", "cotangent"}.isdisjoint(reds)
    click(browser, "#bad")
    assert labels(browser, ".item.selected")[0].startswith("log")
    assert "1 NaN" in ask(browser, "return document.getElementById('details').innerText")
    assert "y = x.log()" in ask(browser, "return document.getElementById('details').innerText")
    click(browser, "[data-cone=inputs]")
    bright = [label.split(" ")[0] for label in labels(browser, ".item:not(.dim)")]
    assert bright == ["x", "log"]
    press(browser, "Escape")
    assert labels(browser, ".item.dim") == []


def test_hover_shows_values_and_line(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["nan"])
    ask(
        browser,
        """document.querySelector('#world .item.op').dispatchEvent(
            new PointerEvent('pointerover', {bubbles: true, pointerType: 'mouse', clientX: 300, clientY: 300}))""",
    )
    text = ask(browser, "return document.getElementById('tip').innerText")
    assert "aten.log.default" in text
    assert "0 … 1.099, 1 NaN" in text
    assert "test_graph_page.py" in text


def test_arrow_keys_follow_the_graph(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["nan"])
    ask(browser, "document.getElementById('drawing').focus()")
    seen = [ask(browser, "return document.activeElement.getAttribute('aria-label')")]
    for _ in range(3):
        press(browser, "ArrowDown")
        seen.append(ask(browser, "return document.activeElement.getAttribute('aria-label')"))
    assert [label.split(" ")[0] for label in seen] == ["x", "log", "mul", "sum"]
    scale = "return document.getElementById('world').getAttribute('transform')"
    before = ask(browser, scale)
    press(browser, "+")
    assert ask(browser, scale) != before


def test_passes_and_views_can_be_shown_or_hidden(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["twice"])
    both = len(labels(browser))
    click(browser, '[data-pass="2"]')
    click(browser, '[data-pass="1"]')
    assert {label.rpartition(", ")[2] for label in labels(browser)} == {"forward"}
    click(browser, '[data-pass="1"]')
    click(browser, '[data-pass="2"]')
    assert len(labels(browser)) == both
    ask(browser, "document.getElementById('views').click()")
    assert len(labels(browser)) > both


def test_dark_and_light(browser: Chrome, pages: dict[str, Path]) -> None:
    color = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    open_page(browser, pages["mlp"], scheme="light")
    assert ask(browser, color) > 600
    click(browser, "#theme")
    assert ask(browser, color) < 120
    open_page(browser, pages["mlp"], scheme="dark")
    assert ask(browser, color) < 120
    click(browser, "#theme")
    assert ask(browser, color) > 600


def test_on_paper_it_is_light_whole_and_without_tools(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["twice"], "phone", scheme="dark")
    whole = "const w = document.getElementById('world').getBoundingClientRect(), d = document.getElementById('drawing')"
    inside = ".getBoundingClientRect(); return w.left >= d.left && w.right <= d.right && w.bottom <= d.bottom"
    assert not ask(browser, whole + inside)  # too large for the screen
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    ask(browser, "window.dispatchEvent(new Event('beforeprint'))")
    assert ask(browser, whole + inside)
    assert not ask(browser, "return [...document.querySelectorAll('.tools, .zoom, .find')].some(e => e.offsetParent)")
    fill = "return getComputedStyle(document.querySelector('.item .label')).fill.match(/\\d+/g).map(Number)"
    assert sum(ask(browser, fill)) < 200
    before = ask(browser, "window.dispatchEvent(new Event('afterprint')); return document.getElementById('world').outerHTML")
    open_page(browser, pages["twice"], "phone", scheme="dark")
    assert ask(browser, "return document.getElementById('world').outerHTML") == before


def test_levels_open_at_a_size_that_can_be_read(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["transformer"])
    click(browser, "#deeper")
    assert len(labels(browser)) > 100
    scale = "return Number(document.getElementById('world').getAttribute('transform').match(/scale\\((.*)\\)/)[1])"
    assert ask(browser, scale) >= 0.4


def test_notes_and_a_cut_title_are_shown_under_the_pointer(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["empty"])
    title = "return document.querySelector('{}').title"
    assert "nothing to differentiate" in ask(browser, title.format("#about"))
    assert ask(browser, title.format("h1")) == ask(browser, "return document.querySelector('h1').textContent")


def test_where_there_is_no_further_level_nothing_moves(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["nan"])
    press(browser, "+")
    ask(browser, "window.drawnBefore = document.querySelector('#world .item')")
    transform = "return document.getElementById('world').getAttribute('transform')"
    before = ask(browser, transform)
    for button in ("#deeper", "#shallower"):
        click(browser, button)
        assert ask(browser, "return document.querySelector('#world .item') === window.drawnBefore")
        assert ask(browser, transform) == before


def test_the_mark_of_what_is_not_finite_can_be_read(browser: Chrome, pages: dict[str, Path]) -> None:
    colors = """const of = (e, what) => getComputedStyle(e)[what].match(/\\d+/g).map(Number);
        const a = document.querySelector('.item .alarm');
        return [of(a.querySelector('text'), 'fill'), of(a.querySelector('circle'), 'fill')]"""
    for scheme in ("light", "dark"):
        open_page(browser, pages["nan"], scheme=scheme)
        text, ground = ask(browser, colors)
        assert contrast(text, ground) > 4.5


def contrast(a: list[int], b: list[int]) -> float:
    """Of two colors (WCAG 2.1, section 1.4.3)."""
    linear = [[c / 255 / 12.92 if c < 11 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color[:3]] for color in (a, b)]
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear)
    return (high + 0.05) / (low + 0.05)
