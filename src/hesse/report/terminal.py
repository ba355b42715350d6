"""A report as a summary in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hesse.report.report import Report
from hesse.report.writing import write, write_gradients, write_seconds

_STYLES = {"good": ("✓", "green"), "note": ("●", "blue"), "bad": ("✗", "bold red"), "refused": ("!", "yellow")}


def print_summary(report: Report, console: Console) -> None:
    """One line a panel: the finding and what it cost."""
    about = report.about
    model = f"{about['model']}, {write(about['parameters'], 'count')} parameters, {about['dtype']} on {about['device']}"
    data = f"{write(about['samples'], 'count')} samples, loss {write(about['loss_value'])}"
    table = Table(title=f"{about['target']}\n{model}; {data}", title_style="bold", title_justify="left")
    table.add_column("panel", no_wrap=True)
    table.add_column("finding", ratio=1)
    table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for result in report.results:
        mark, color = _STYLES[result.view.status]
        finding = Text(result.view.headline)
        if result.view.status == "refused":
            error = result.numbers["error"]
            finding.append(f"\nfound: {error['found']}\nremedy: {error['remedy']}", style="dim")
        table.add_row(
            Text(f"{mark} {result.title}", style=color), finding, write_gradients(result.cost.gradients),
            write_seconds(result.cost.seconds),
        )
    console.print(table)
    console.print(
        f"One gradient of this model on this batch takes {write_seconds(about['gradient_seconds'])} "
        f"({about['threads']} threads); the panels took {write_seconds(report.seconds)} in all.", style="dim",
    )
