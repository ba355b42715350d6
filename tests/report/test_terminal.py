"""The summary in the terminal."""

from __future__ import annotations

import io

from rich.console import Console
from torch import nn

from hesse.report import Settings, make_report, print_summary

from .small import classifier, images


def printed(settings: Settings) -> str:
    target = io.StringIO()
    report = make_report(classifier(), nn.CrossEntropyLoss(), images(), settings=settings, name="a.py:f")
    print_summary(report, Console(file=target, width=150))
    return target.getvalue()


def test_one_line_a_panel_with_its_cost() -> None:
    text = printed(Settings(("check", "layers")))
    assert "All 4 parameter tensors confirmed" in text
    assert "empirical Fisher" in text
    assert text.count("gradients") >= 2
    assert "187 parameters, float32 on cpu; 14 samples" in text
    assert "One gradient of this model on this batch takes" in text


def test_a_refused_panel_shows_its_remedy() -> None:
    text = printed(Settings(("curvature",), memory=2000))
    assert "remedy:" in text
    assert "memory=" in text
