"""What the site's build fills in: tables of rules, help texts, directives, docstrings spelled out; and that nothing public
is missing from the reference."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import hesse

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: hesse\.(\w+)$", text, re.MULTILINE))
    elsewhere = {"HesseError", "debug", "distributed", "operators", "nn"}  # with all errors, and name by name
    assert set(hesse.__all__) - documented - elsewhere == set()
    assert documented - set(hesse.__all__) == set()


def test_the_table_of_loss_rules_comes_from_the_registry() -> None:
    page = tool("site_hooks").on_page_markdown("a\n<!-- loss rules -->\nb")
    assert "`CrossEntropyLoss`, `cross_entropy`" in page and "`losses/classes.py`" in page
    assert "<!--" not in page


def test_help_is_what_the_command_prints() -> None:
    text = tool("site_hooks").on_page_markdown("<!-- help report -->")
    assert text.startswith("```text\nUsage: hesse report [OPTIONS] TARGET") and "--panels" in text


def test_a_public_name_is_documented_where_it_is_defined() -> None:
    text = tool("site_hooks").on_page_markdown("::: hesse.jacobian\n")
    assert text.startswith("::: hesse.derivatives.jacobian.jacobian\n    options:")


def test_docstrings_are_spelled_out() -> None:
    pytest.importorskip("griffe", reason="griffe comes with the extra [docs]")
    text = """One line, and code::

    1 + 1

Args:
    rtol, atol: the tolerance, over
        two lines.
    x: the point.

Returns:
    The number: a float.

Raises:
    LeafError: an integer leaf. DataError, DeviceError: as the
    names say. Others as `jacobian`.

Cost: 1 gradient.
"""
    assert tool("docstrings").spell_out(text) == """One line, and code:

    1 + 1

Args:
    rtol: the tolerance, over
        two lines.
    atol: the tolerance, over
        two lines.
    x: the point.

Returns:
    : The number: a float.

Raises:
    LeafError: an integer leaf.
    DataError: as the names say.
    DeviceError: as the names say.
    HesseError: others as `jacobian`.

Cost: 1 gradient.
"""
