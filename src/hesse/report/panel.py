"""What a panel of the report is: something that measures, and something that shows what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.figure import Figure

from hesse.report.case import Case

Numbers = dict[str, Any]  # what JSON can hold: dicts, lists, numbers, texts, None
Status = Literal["good", "note", "bad", "refused"]


@dataclass(frozen=True)
class Fact:
    """One number of a panel that stands out.

    Attributes:
        label: what it is.
        path: where it stands in the panel's numbers, ``"trace.value"``.
        style: how it is written, see `hesse.report.writing`.
        error: where its error bar stands, or "".
        remark: a few words below it.
    """

    label: str
    path: str
    style: str = "number"
    error: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, the key in each row, how values are written, and what it means."""

    label: str
    key: str
    style: str = "number"
    meaning: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of the panel's numbers as a table.

    Attributes:
        title: its heading.
        path: where the list of rows stands in the numbers.
        columns: what is shown of each row.
    """

    title: str
    path: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Drawing:
    """A figure, its title, a caption that says what one sees, and a text for those who do not see it."""

    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Picture:
    """An image of one sample, PNG-encoded, with two lines of text."""

    png: bytes
    title: str
    text: str


@dataclass(frozen=True)
class View:
    """How a panel's numbers are shown.

    Attributes:
        status: "good" (confirmed), "note" (information), "bad" (a wrong derivative), "refused" (an error).
        headline: the finding in one sentence.
        facts, tables, drawings, pictures: in the order of the page.
        sketches: what a terminal shows of the drawings, each some lines of characters.
    """

    status: Status
    headline: str
    facts: tuple[Fact, ...] = ()
    tables: tuple[Table, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    pictures: tuple[Picture, ...] = ()
    sketches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """A kind of panel.

    Attributes:
        key: its name on the command line and in the JSON.
        title: its heading.
        question: the question that it answers.
        measure: computes its numbers; this is what its cost counts.
        show: draws them; a pure function of the case and the numbers.
    """

    key: str
    title: str
    question: str
    measure: Callable[[Case], Numbers]
    show: Callable[[Case, Numbers], View]


@dataclass(frozen=True)
class Cost:
    """What a panel's numbers cost: wall-clock seconds, and the same in gradients of the same model and batch."""

    seconds: float
    gradients: float


@dataclass(frozen=True)
class PanelResult:
    """A panel, done.

    Attributes:
        panel: the kind.
        numbers: everything that the page shows of it, and more, in the form of JSON.
        notes: what a reader must know of how the numbers came about.
        view: how they are shown.
        cost: what they cost.
    """

    panel: Panel
    numbers: Numbers
    notes: tuple[str, ...]
    view: View
    cost: Cost

    @property
    def title(self) -> str:
        """The panel's heading."""
        return self.panel.title


def look_up(numbers: Numbers, path: str) -> Any:
    """The entry at a dotted path, ``"trace.value"`` or ``"rows.3.norm"``; None where there is none."""
    found: Any = numbers
    for part in path.split("."):
        if isinstance(found, list):
            found = found[int(part)] if int(part) < len(found) else None
        else:
            found = found.get(part) if isinstance(found, dict) else None
    return found
