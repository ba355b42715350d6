"""The page and the JSON hold the same numbers, and the page needs nothing beside itself."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

from hesse.report import Settings, make_report, to_html, write_files, write_pictures
from hesse.report.panel import look_up

from .small import classifier, images


class Page(HTMLParser):
    """Every element with its attributes, and the numbers that the page marks as such."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def numbers(self) -> dict[str, object]:
        return {
            str(a["data-path"]): json.loads(str(a["value"])) for tag, a in self.elements if tag == "data" and "data-path" in a
        }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    report = make_report(classifier(), nn.CrossEntropyLoss(), images(), name="a<b>.py:f")
    page, numbers = write_files(report, tmp_path_factory.mktemp("written") / "deep" / "folder")
    return page.read_text(encoding="utf-8"), json.loads(numbers.read_text(encoding="utf-8"))


def test_every_number_of_the_page_is_that_of_the_json(written: tuple[str, dict]) -> None:
    page, numbers = written
    shown = Page(page).numbers()
    assert len(shown) > 80
    assert {path.split(".")[1] for path in shown if path.startswith("panels.")} == {
        "check", "samples", "layers", "curvature", "spectrum", "dimension", "kfac",
    }
    for path, value in shown.items():
        assert value == look_up(numbers, path), path


def test_the_json_says_what_each_panel_costs(written: tuple[str, dict]) -> None:
    for panel in written[1]["panels"].values():
        assert panel["cost"]["seconds"] > 0
        assert panel["cost"]["gradients"] == pytest.approx(
            panel["cost"]["seconds"] / written[1]["about"]["gradient_seconds"], rel=1e-9
        )


def test_the_page_needs_no_network_and_runs_no_script(written: tuple[str, dict]) -> None:
    elements = Page(written[0]).elements
    assert not [tag for tag, _ in elements if tag in ("script", "iframe", "object")]
    for tag, attributes in elements:
        for name in ("src", "href", "xlink:href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, address)
    assert "@import" not in written[0]
    assert not re.search(r"url\((?!#)", written[0])


def test_ids_are_unique_and_references_lead_somewhere(written: tuple[str, dict]) -> None:
    elements = Page(written[0]).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    text = written[0]
    wanted = set(re.findall(r'(?:xlink:)?href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert wanted <= set(ids)


def test_every_drawing_is_there_and_described(written: tuple[str, dict]) -> None:
    drawings = [a for tag, a in Page(written[0]).elements if tag == "svg"]
    assert len(drawings) == 13
    assert all(a.get("role") == "img" and a.get("aria-label") and a.get("viewbox") for a in drawings)
    assert all("width" not in a for a in drawings)


def test_what_the_user_named_is_escaped(written: tuple[str, dict]) -> None:
    assert "a&lt;b&gt;.py:f" in written[0]
    assert "a<b>.py" not in written[0]


def test_a_refused_panel_says_found_and_remedy() -> None:
    settings = Settings(("curvature",), memory=2000)
    text = to_html(make_report(classifier(), nn.CrossEntropyLoss(), images(), settings=settings))
    assert "MemoryBudgetError" in text
    assert "memory=" in text


def test_numbers_that_are_not_finite_are_null_in_the_json(tmp_path: Path) -> None:
    params = {"w": torch.zeros(3), "b": torch.ones(1)}
    model = (lambda p, x: x[:, :1] * torch.sqrt((p["w"] ** 2).sum()) + p["b"], params)
    data = (torch.ones(4, 1), torch.zeros(4, 1))
    report = make_report(model, nn.MSELoss(), data, settings=Settings(("check",)))
    assert math.isinf(report.results[0].numbers["worst_error"])
    page, numbers = write_files(report, tmp_path)
    assert json.loads(numbers.read_text())["panels"]["check"]["numbers"]["worst_error"] is None
    assert "∞" in page.read_text()
    assert Page(page.read_text()).numbers()["panels.check.numbers.worst_error"] is None


def test_files_are_named_after_the_command_and_figures_are_pictures_of_their_own(tmp_path: Path) -> None:
    settings = Settings(("spectrum", "kfac"))
    report = make_report(classifier(), nn.CrossEntropyLoss(), images(), settings=settings, name="a.py:f", command="spectrum")
    page, numbers = write_files(report, tmp_path)
    assert (page.name, numbers.name) == ("spectrum.html", "spectrum.json")
    assert "hesse spectrum a.py:f" in page.read_text() and "curvature report" in page.read_text()
    pictures = write_pictures(report, tmp_path)
    assert [path.name for path in pictures] == ["spectrum.png", "spectrum-2.png", "spectrum-3.png", "kfac.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
