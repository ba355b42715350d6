"""A report as files: one HTML page that needs nothing beside itself, and the same numbers as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hesse.report import writing
from hesse.report.page import plain, render, write_page
from hesse.report.panel import PanelResult, look_up
from hesse.report.pictures import data_uri, inline_svg, png_of_figure
from hesse.report.report import Report

_STATUS = {"good": ("✓", "confirmed"), "note": ("●", "measured"), "bad": ("✗", "wrong"), "refused": ("!", "refused")}
_KINDS = {"report": "derivative report", "spectrum": "curvature report"}


def write_files(report: Report, folder: str | Path) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.json`` (after the report's command) into a folder, which is made if need be.

    Returns:
        both paths.
    """
    return write_page(folder, report.command, to_html(report), to_json(report))


def write_pictures(report: Report, folder: str | Path) -> list[Path]:
    """Write every drawing as PNG into a folder that exists: ``PANEL.png``, further ones of a panel ``PANEL-2.png``.

    Returns:
        their paths.
    """
    written = []
    for result in report.results:
        for number, drawing in enumerate(result.view.drawings, start=1):
            path = Path(folder) / f"{result.panel.key}{f'-{number}' if number > 1 else ''}.png"
            path.write_bytes(png_of_figure(drawing.figure))
            written.append(path)
    return written


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain dicts, lists, numbers and texts; numbers that are not finite become None."""
    panels = {
        result.panel.key: {
            "title": result.title,
            "status": result.view.status,
            "headline": result.view.headline,
            "cost": {"gradients": result.cost.gradients, "seconds": result.cost.seconds},
            "numbers": result.numbers,
        }
        for result in report.results
    }
    return plain({"about": report.about, "panels": panels})


def to_html(report: Report) -> str:
    """The report as one page: inline style, inline drawings, no script, no network."""
    kind = _KINDS.get(report.command, report.command)
    return render(
        "report.html", report=report, about=report.about, command=report.command, kind=kind,
        data_uri=data_uri, status=_STATUS, drawing=_drawing, number_about=_about_number, number=_number, fact=_fact,
        look_up=look_up,
    )  # fmt: skip


def _drawing(result: PanelResult, index: int) -> Markup:
    drawing = result.view.drawings[index]
    description = f"{drawing.title}. {drawing.caption}"
    return Markup(inline_svg(drawing.figure, f"{result.panel.key}-{index}", description))


def _about_number(report: Report, path: str, style: str) -> Markup:
    value = look_up(report.about, path)
    shown = writing.write_seconds(value) if style == "seconds" else writing.write(value, style)
    return _data(f"about.{path}", value, shown)


def _number(result: PanelResult, path: str, style: str) -> Markup:
    """One number of a panel, with its exact value and its place in the JSON for programs that read the page."""
    value = look_up(result.numbers, path)
    text = writing.write(value, style)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Markup("{}").format(text)
    return _data(f"panels.{result.panel.key}.numbers.{path}", value, text)


def _fact(result: PanelResult, path: str, style: str, error_path: str) -> Markup:
    value, error = look_up(result.numbers, path), look_up(result.numbers, error_path) if error_path else None
    if value is None or error is None:
        return _number(result, path, style)
    return _data(f"panels.{result.panel.key}.numbers.{path}", value, writing.write_measured(value, error, style))


def _data(path: str, value: Any, text: str) -> Markup:
    exact = json.dumps(plain(value))
    return Markup('<data value="{}" data-path="{}">{}</data>').format(exact, path, text)
