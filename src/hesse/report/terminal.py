"""A report in the terminal: a summary, and its panels as text."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hesse.report import panel
from hesse.report.panel import PanelResult, look_up
from hesse.report.report import Report
from hesse.report.writing import write, write_gradients, write_measured, write_seconds

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


def print_details(report: Report, console: Console) -> None:
    """The facts, sketches, tables and notes of every panel, one panel after the other."""
    for result in report.results:
        view = result.view
        if view.status == "refused":
            continue
        console.print()
        console.rule(f"[bold]{result.title}", align="left")
        console.print(f"[dim]{result.panel.question}[/dim]\n")
        console.print(_facts(result))
        for drawn in view.sketches:
            console.print(Text("\n" + drawn), soft_wrap=True)
        for table in view.tables:
            console.print()
            console.print(_table(result, table))
        for note in result.notes:
            console.print(Text(f"• {note}", style="dim"))


def _facts(result: PanelResult) -> Table:
    table = Table.grid(padding=(0, 2))
    for fact in result.view.facts:
        value, error = look_up(result.numbers, fact.path), look_up(result.numbers, fact.error) if fact.error else None
        shown = write(value, fact.style) if value is None or error is None else write_measured(value, error, fact.style)
        table.add_row(Text(fact.label), Text(shown, style="bold"), Text(fact.remark, style="dim"))
    return table


def _table(result: PanelResult, shown: panel.Table) -> Table:
    table = Table(title=shown.title, title_justify="left", title_style="bold")
    for column in shown.columns:
        text = column.style in ("name", "verdict", "shape")
        table.add_column(column.label.strip(), justify="left" if text else "right", overflow="fold")
    for row in look_up(result.numbers, shown.path):
        table.add_row(*(Text(write(row.get(column.key), column.style)) for column in shown.columns))
    return table
