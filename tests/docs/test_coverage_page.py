"""The coverage page says what its examples show when they are run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tools.coverage_page.case import Case, measure, normal, watched
from tools.coverage_page.page import ELSEWHERE, FAMILIES, PAGE, summary, without_numbers, written
from tools.coverage_page.refusals import REFUSALS, Refusal, raised
from torch import nn

from hesse.rules.forms import Dense
from hesse.rules.layers import Meeting, layer_rules

SLOPES = next(case for case in FAMILIES["Elementwise"] if "PReLU" in case.label)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="the page is written where PyTorch has oneDNN")
def test_the_page_is_what_its_examples_show() -> None:
    page = PAGE.read_text()
    assert without_numbers(written(page)) == without_numbers(page), "out of date: run python -m tools.coverage_page"


def test_every_rule_has_an_example() -> None:
    page = PAGE.read_text()
    assert all(f"`{node}`" in page for node in layer_rules)
    assert set(map(str, layer_rules)) >= ELSEWHERE


def test_labels_name_one_example_each() -> None:
    labels = [case.label for cases in FAMILIES.values() for case in cases] + [refusal.label for refusal in REFUSALS]
    assert len(labels) == len(set(labels)) and not any("|" in label for label in labels)


def test_a_wrong_rule_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure(SLOPES).paths == {"weight": "rule"}
    monkeypatch.setattr(layer_rules, "_rules", dict(layer_rules._rules))
    right: Any = layer_rules.get("PreluKernelBackward0")

    @layer_rules.register("PreluKernelBackward0")
    def double(meeting: Meeting) -> Dense:
        return Dense(2 * right(meeting).rows)

    assert measure(SLOPES).paths != {"weight": "rule"}


def test_an_error_beyond_rounding_is_not_written_down() -> None:
    case = Case("single", lambda: (nn.Linear(5, 3), normal(5)), torch.float32, tolerance=1e-12)
    with pytest.raises(AssertionError, match="single: an error of"):
        measure(case)


def test_what_is_not_refused_is_noticed() -> None:
    with pytest.raises(AssertionError, match="nothing was raised"):
        raised(Refusal("fine", lambda: (nn.Linear(5, 3), normal(5))))


def test_watching_leaves_the_registry_as_it_was() -> None:
    before = layer_rules.get("AddmmBackward0")
    with watched():
        assert layer_rules.get("AddmmBackward0") is not before
    assert layer_rules.get("AddmmBackward0") is before and "get" not in vars(layer_rules)


def test_numbers_that_depend_on_the_machine_are_left_out_and_no_others() -> None:
    text = "| `Conv2d` on `[N, 3]` | `Mm` | rule | 3e-17 |\nof 2.78 for sample 2"
    assert without_numbers(text) == "| `Conv2d` on `[N, 3]` | `Mm` | rule | # |\nof # for #"
    assert without_numbers(text.replace("3e-17", "0")) == without_numbers(text)


def test_paths_are_told_by_parameter_where_they_differ() -> None:
    assert summary({"a": "rule", "b": "rule"}) == "rule"
    assert summary({"a": "rule", "b": "masked", "c": "rule"}) == "rule: `a`, `c`; masked: `b`"
