"""The summary in the terminal."""

from __future__ import annotations

import io

from rich.console import Console
from torch import nn

from hesse.report import Settings, make_report, print_details, print_summary

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


def test_details_hold_facts_sketches_tables_and_notes() -> None:
    target = io.StringIO()
    settings = Settings(("spectrum", "dimension", "kfac"))
    report = make_report(classifier(), nn.CrossEntropyLoss(), images(), settings=settings, name="a.py:f")
    print_details(report, Console(file=target, width=120))
    text = target.getvalue()
    for heading in ("Spectral density", "Effective dimension", "Kronecker factors"):
        assert f"{heading} ─" in text
    assert "Hessian: number of eigenvalues, logarithmic" in text and "█" in text
    spectrum, _, kfac = (result.numbers for result in report.results)
    assert f"{spectrum['eigenvalues'][0]['hessian']:.4g}"[:4] in text
    assert all(row["name"] in text for row in kfac["rows"])
    assert f"• {spectrum['notes'][0][:40]}" in text


def test_a_refused_panel_has_no_details() -> None:
    target = io.StringIO()
    report = make_report(classifier(), nn.CrossEntropyLoss(), images(), settings=Settings(("kfac",), memory=500))
    print_details(report, Console(file=target, width=120))
    assert report.refused and target.getvalue() == ""
