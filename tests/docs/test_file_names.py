"""Files that the docs name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`((?:src|tests|tools|docs|benchmarks|examples)/[\w./-]*)`")
WRITTEN = ("benchmarks/results/",)  # what a command writes is not in a fresh checkout
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_exist(page: Path) -> None:
    named = [path for path in NAMED.findall(page.read_text()) if not path.startswith(WRITTEN)]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_paths_are_found_in_the_text() -> None:
    assert len(NAMED.findall((ROOT / "CONTRIBUTING.md").read_text())) > 10


def test_the_files_of_the_capture_exist() -> None:
    text = (ROOT / "docs" / "explanation" / "the_house.md").read_text().split("## Capture, file by file")[1].split("\n## ")[0]
    names = re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE)
    assert len(names) > 10
    assert [name for name in names if not (ROOT / "src" / "hesse" / "autodiff" / name).exists()] == []
