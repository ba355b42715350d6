"""Every Python block of the README, the contributing guide and the site runs, page by page.

The blocks of a page share one namespace and run from top to bottom in an empty directory. A block can be left
out only by a comment right before it that says why; the reason is printed as a warning::

    <!-- skip: next "needs a GPU" -->
"""

from __future__ import annotations

import re
import sys
import types
import unittest
import warnings
from pathlib import Path

import pytest
import torch
from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from hesse.rules.layers import layer_rules
from hesse.rules.losses import loss_rules

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^[ \t]*(?:```|~~~)+[ \t]*\{?\.?(?:py|pycon|python|python3)\b.*$", re.MULTILINE)
SKIP = re.compile(r"<!--+\s*skip:\s*(?!end)(.*?)--+>")


def pages() -> list[Path]:
    top = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    return [page for page in (*top, *sorted((ROOT / "docs").rglob("*.md"))) if FENCE.search(page.read_text())]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run_page(page: Path) -> int:
    """Run the blocks of a page; returns how many were met, the skipped ones counted."""
    document = Document.parse(str(page), PythonCodeBlockParser(), SkipParser())
    module = types.ModuleType("page_" + re.sub(r"\W", "_", page.stem))
    document.namespace = module.__dict__
    sys.modules[module.__name__] = module  # classes that a page defines look their module up
    met = 0
    try:
        for example in document:
            met += "```" in document.text[example.start : example.region.end]
            try:
                example.evaluate()
            except unittest.SkipTest as reason:
                warnings.warn(f"{page.name}, line {example.line}: not run, {reason}", stacklevel=1)
    finally:
        del sys.modules[module.__name__]
    return met


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty working directory and a fixed seed; generator, default dtype and registries are put back."""
    monkeypatch.chdir(tmp_path)
    for registry in (layer_rules, loss_rules):
        monkeypatch.setattr(registry, "_rules", dict(registry._rules))
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_blocks_run(page: Path, fresh: None) -> None:
    fences = len(FENCE.findall(page.read_text()))
    assert run_page(page) == fences, "a block that looks like Python was not run"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_skipped_blocks_say_why(page: Path) -> None:
    for arguments in SKIP.findall(page.read_text()):
        assert re.search(r"[\"'].{5,}[\"']", arguments), f"a skip without its reason: {arguments!r}"


def test_a_wrong_block_fails_at_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\ntext\n\n```python\ny = x + 1\nassert y == 3\n```\n")
    with pytest.raises(AssertionError) as caught:
        run_page(page)
    assert caught.traceback[-1].lineno + 1 == 11


def test_a_skipped_block_does_not_run_and_says_why(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    skipped = '<!-- skip: next "needs a GPU" -->\n```python\nraise RuntimeError\n```\n'
    page.write_text(skipped + "\n```python\nz = 1\n```\n")
    with pytest.warns(UserWarning, match="line 2: not run, needs a GPU"):
        assert run_page(page) == 2


def test_the_readme_has_a_block() -> None:
    assert ROOT / "README.md" in pages()
