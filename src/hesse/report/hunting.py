"""What `hesse nan TARGET` runs: the training steps of a TARGET, one after the other, until one is no longer finite."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text
from torch import Tensor, nn

from hesse.autodiff.events.records import TensorFacts
from hesse.autodiff.model import split_batch
from hesse.check.replica import Replica
from hesse.core.errors import TargetError
from hesse.core.progress import track
from hesse.debug import NonfiniteReport, find_nonfinite
from hesse.report.page import made_with, render, write_page
from hesse.report.target import batches_of, check_triple, describe, find_function, own_arguments
from hesse.report.user_code import UserCodeError

_ASKED = "`hesse nan` takes a TARGET that is a training step, or that returns one."
_AROUND = 3  # lines of code shown on each side
Step = Callable[[], Any]


@dataclass(frozen=True)
class Hunted:
    """What came of running the steps.

    Attributes:
        about: target, how many steps ran, seed, versions.
        report: of the last step that ran.
    """

    about: dict[str, Any]
    report: NonfiniteReport


def hunt_target(name: str, *, steps: int = 100, seed: int = 0) -> Hunted:
    """Run the training steps of a TARGET until a result of one is not finite.

    Args:
        name: TARGET: a function of no arguments. It is the step itself (which returns a loss or nothing); or it returns a step
            to be called `steps` times; or it returns (model, loss, data): each batch is then run forward and backward.
        steps: at most so many.
        seed: noted on the page.

    Raises:
        TargetError: something else.
        UserCodeError: the user's code raised while everything was finite.

    Cost: `hesse.debug.find_nonfinite`, once a step.
    """
    with own_arguments(name):
        function = find_function(name)
        report, returned = _watched(function, f"calling {getattr(function, '__name__', name)}()")
        ran = 1
        if not (report.found or returned is None or _is_result(returned)):
            ran = 0
            for step in track(islice(_steps(name, returned), steps), "steps", steps):
                report, _ = _watched(step, f"running training step {ran + 1}")
                ran += 1
                if report.found:
                    break
    return Hunted({"target": name, "steps": ran, "seed": seed, **made_with()}, report)


def _watched(step: Step, doing: str) -> tuple[NonfiniteReport, Any]:
    returned: list[Any] = []

    def once() -> Any:
        returned.append(step())
        return returned[0]

    try:
        report = find_nonfinite(once)
    except SystemExit as error:  # a script that exits while it is loaded
        raise UserCodeError(doing, error) from error
    if report.error is not None and not report.found:
        raise UserCodeError(doing, report.error)
    return report, returned[0] if returned else None


def _is_result(returned: Any) -> bool:
    return isinstance(returned, (Tensor, float, int, dict))


def _steps(name: str, returned: Any) -> Iterator[Step]:
    if isinstance(returned, (tuple, list)) and len(returned) == 3:
        target = check_triple(name, returned)
        for batch in batches_of(target.data, _ASKED):
            replica = Replica(target.model, target.loss, split_batch(batch, _ASKED))
            yield replica.gradient
    elif callable(returned) and not isinstance(returned, (type, nn.Module)):
        yield from chain.from_iterable(iter(lambda: [returned], None))
    else:
        raise TargetError(_ASKED, f"{name} returned {describe(returned)}", "return a function that runs one training step, "
                          "or (model, loss, data)")  # fmt: skip


def print_hunt(hunted: Hunted, console: Console) -> None:
    """The finding in the terminal."""
    report = hunted.report
    if not report.found:
        console.print(Text(f"✓ {headline(hunted)}", style="green"))
        return
    console.print(Text(f"✗ {headline(hunted)}", style="bold red"))
    console.print(Text(report.text))
    if code := "".join(text for _, text in _code(report)):
        first = max(1, report.line - _AROUND)
        console.print(Syntax(code, "python", line_numbers=True, start_line=first, highlight_lines={report.line},
                             theme="ansi_dark", background_color="default"))  # fmt: skip


def headline(hunted: Hunted) -> str:
    """The outcome in a sentence."""
    report, steps = hunted.report, hunted.about["steps"]
    ran = "step" if steps == 1 else "steps"
    if not report.found:
        return f"No NaN or infinity reached a result in {steps} {ran}."
    words = {"nan": "A NaN", "inf": "An infinity", "overflow": "An overflow"}[report.kind or "nan"]
    where = f" in {Path(report.file).name}:{report.line}" if report.file else ""
    return f"{words} from {report.title}{where} reached the {report.sink} in step {steps}."


def write_hunt(hunted: Hunted, folder: str | Path) -> list[Path]:
    """Write ``nan.html`` and ``nan.json`` into a folder, which is made if need be; ``nan.dot`` too where something was found.

    Returns:
        the paths.
    """
    report = hunted.report
    dot = report.dot() if report.found else ""
    page = render("nan.html", about=hunted.about, command="nan", kind="hunt for NaN and infinity", report=report,
                  headline=headline(hunted), code=_code(report), dot=dot)  # fmt: skip
    facts = {
        key: getattr(report, key)
        for key in (
            "found",
            "op",
            "node",
            "title",
            "kind",
            "phase",
            "file",
            "line",
            "function",
            "module",
            "region",
            "tensor",
            "sink",
            "chain",
        )
    }
    tensors = {"output": report.output and _tensor(report.output), "inputs": [_tensor(given) for given in report.inputs]}
    written = [*write_page(folder, "nan", page, {"about": hunted.about, **facts, **tensors})]
    if dot:
        written.append(Path(folder) / "nan.dot")
        written[-1].write_text(dot, encoding="utf-8")
    return written


def _tensor(facts: TensorFacts) -> dict[str, Any]:
    """What is known of a tensor, as JSON has it; the range is that of the finite entries."""
    dtype = str(facts.dtype).removeprefix("torch.")
    numbers = {"low": facts.low, "high": facts.high, "nans": facts.nans, "infs": facts.infs}
    return {"dtype": dtype, "shape": list(facts.shape), **numbers}


def _code(report: NonfiniteReport) -> list[tuple[int, str]]:
    """The lines around the cause, with their numbers."""
    if not report.file:
        return []
    numbers = range(max(1, report.line - _AROUND), report.line + _AROUND + 1)
    lines = [(number, text) for number in numbers if (text := linecache.getline(report.file, number))]
    while lines and not lines[-1][1].strip():
        lines.pop()
    return lines
