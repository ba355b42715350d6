"""The pages of `hesse check` and `hesse nan` in a real browser: on a phone, in the dark, on paper."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from hesse.report import check_target, hunt_target, write_check, write_hunt

from .test_browser import SIZES, ask, browser, open_page

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

__all__ = ["browser"]  # a fixture
NAME = "a_folder_with_a_long_name/and_a_file_whose_name_is_long_too.py:and_a_function"
STEP = """
import torch

def a_training_step_with_a_long_name():
    probabilities_that_underflow = torch.softmax(torch.tensor([[0.0, 200.0], [-300.0, 300.0]], requires_grad=True), dim=1)
    return (torch.zeros(2, 2) * torch.log(probabilities_that_underflow)).sum()
"""
BRIGHTNESS = "return getComputedStyle({}).{}.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)"


class Doubled(torch.autograd.Function):
    """The sine, with twice its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0].cos()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a_parameter_with_quite_a_long_name = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(x @ self.a_parameter_with_quite_a_long_name.T)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "a_step_of_test.py").write_text(STEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        hunted = hunt_target(f"{folder}/a_step_of_test.py:a_training_step_with_a_long_name")
    returned = Layer(), nn.MSELoss(), (torch.randn(4, 4), torch.randn(4, 3))
    return {
        "check": write_check(check_target(NAME, returned), folder)[0],
        "nan": write_hunt(hunted, folder)[0],
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["check", "nan"])
def test_nothing_sticks_out_and_nothing_is_fetched(browser: Chrome, pages: dict[str, Path], name: str, size: str) -> None:
    browser.get_log("browser")
    open_page(browser, pages[name], size)
    assert browser.get_log("browser") == []
    assert ask(browser, "document.querySelectorAll('details').forEach(d => d.open = true); return innerWidth") == SIZES[size][0]
    assert ask(browser, "return document.documentElement.scrollWidth") <= SIZES[size][0]
    outside = ask(
        browser,
        """return [...document.body.querySelectorAll('*')]
            .filter(e => !e.parentElement.closest('.scroll, .code') && e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.tagName + '.' + e.className)""",
    )
    assert outside == []


@pytest.mark.parametrize("name", ["check", "nan"])
def test_dark_on_the_screen_and_light_on_paper(browser: Chrome, pages: dict[str, Path], name: str) -> None:
    ink, paper = (
        BRIGHTNESS.format("document.querySelector('h1')", "color"),
        BRIGHTNESS.format("document.body", "backgroundColor"),
    )
    open_page(browser, pages[name], "desktop", "dark")
    assert (ask(browser, ink) > 600, ask(browser, paper) < 120) == (True, True)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    assert ask(browser, ink) < 200
    ask(browser, "document.querySelectorAll('details').forEach(d => d.open = true)")
    cut = "return [...document.querySelectorAll('.code, .scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert ask(browser, cut) == 0


def test_a_long_name_is_broken_behind_its_marks(browser: Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["check"], "phone")
    lines = ask(
        browser,
        """const range = document.createRange(), found = [];
            for (const node of document.querySelector('h1').childNodes) if (node.nodeType === 3) {
                range.selectNodeContents(node);
                found.push(new Set([...range.getClientRects()].map(r => Math.round(r.top))).size);
            }
            return found""",
    )
    assert max(lines) == 1  # no part between two marks stands on two lines
    assert len(lines) > 10
