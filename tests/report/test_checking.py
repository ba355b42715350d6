"""What `hesse check` makes of a TARGET, its page and its text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import hesse
from hesse.core.errors import TargetError
from hesse.report import Checked, UserCodeError, check_target, print_check, write_check
from hesse.report.check_page import headline

from .small import classifier, images


class Doubled(torch.autograd.Function):
    """The sine, with twice its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0].cos()


class Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(x @ self.weight.T)


def parts(checked: Checked) -> dict[str, str]:
    return {part.title: part.verdict for part in checked.parts}


def shown(checked: Checked) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_check(checked, console)
    return console.file.getvalue()


def test_a_right_module_is_confirmed(tmp_path: Path) -> None:
    checked = check_target("layers.py:make", (nn.Linear(4, 3), torch.randn(5, 4)))
    assert parts(checked) == {"Linear": "ok"}
    assert checked.ok
    assert "✓ Linear: Confirmed." in shown(checked)
    page, numbers, *programs = write_check(checked, tmp_path / "out")
    assert not programs
    facts = json.loads(numbers.read_text())
    assert facts["about"]["target"] == "layers.py:make"
    assert facts["parts"][0]["verdict"] == "ok"
    assert facts["parts"][0]["compared"]
    assert "layers.py:make" in page.read_text()


def test_a_wrong_module_is_shown_with_its_factor(tmp_path: Path) -> None:
    checked = check_target("layers.py:make", (Wrong(), torch.randn(5, 4)))
    assert parts(checked) == {"Wrong": "wrong"}
    assert not checked.ok
    assert "factor 2" in headline(checked.parts[0])
    page, numbers, program = write_check(checked, tmp_path)
    part = json.loads(numbers.read_text())["parts"][0]
    findings = part["findings"]
    assert part["reproducer"] == program.read_text()
    assert "reproduce.py" in page.read_text()
    assert "the program reproduce.py shows it" in shown(checked)
    assert any("factor 2" in finding["diagnosis"] for finding in findings)
    assert "factor 2" in page.read_text()
    assert "factor 2" in shown(checked)


def test_the_terminal_has_the_worst_rows_and_counts_the_others(tmp_path: Path) -> None:
    checked = check_target("t", (nn.Linear(4, 3), torch.randn(5, 4)), level="full")
    rows = json.loads(write_check(checked, tmp_path)[1].read_text())["parts"][0]["compared"]
    assert len(rows) > 16
    text = shown(checked)
    assert f"and {len(rows) - 16} more rows ({len(rows) - 16} ok), in check.html and check.json" in text
    worst = max(rows, key=lambda row: row["error"])
    first = next(line for line in text.splitlines() if line.startswith("│ ✓"))
    assert first.split("│")[1].split()[1:] == worst["check"].split()
    wrong = shown(check_target("t", (Wrong(), torch.randn(5, 4))))
    assert wrong.index("│ ✗") < wrong.index("│ ✓")


def test_a_function_with_a_point_and_an_operator() -> None:
    assert parts(check_target("f", (torch.sin, torch.randn(3)))) == {"sin": "ok"}
    A = hesse.operators.Dense(torch.randn(3, 4, dtype=torch.float64))
    assert parts(check_target("A", A)) == {"operator": "ok"}


def test_a_model_is_checked_with_its_loss() -> None:
    def wrong_loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(Doubled.apply(output), target)

    model, data = classifier(), images(30)
    assert parts(check_target("t", (model, nn.CrossEntropyLoss(), data))) == {"model": "ok", "loss": "ok"}
    assert parts(check_target("t", (model, wrong_loss, [data, data]))) == {"model": "ok", "loss": "wrong"}
    f, params = hesse.functional(model)
    assert parts(check_target("t", ((f, params), nn.CrossEntropyLoss(), data))) == {"model": "ok", "loss": "ok"}


def test_the_loss_is_checked_with_as_many_outputs_as_targets_only() -> None:
    sizes = set()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        sizes.add((len(output), len(target)))
        return (output - target).square().mean()  # broadcasts

    checked = check_target("t", (nn.Linear(3, 2), loss, (torch.randn(6, 3), torch.randn(6, 2))), level="full")
    assert parts(checked) == {"model": "ok", "loss": "ok"}
    assert sizes == {(4, 4)}


def test_what_cannot_be_checked_is_refused_part_by_part(tmp_path: Path) -> None:
    checked = check_target("t", (lambda x: x.argmax(), torch.randn(3)))
    assert [part.verdict for part in checked.parts] == ["refused"]
    text = shown(checked)
    assert "Refused." in text
    assert "found: " in text
    assert "remedy: " in text
    assert text.count(checked.parts[0].error.asked) == 1  # pyright: ignore[reportOptionalMemberAccess]
    assert json.loads(write_check(checked, tmp_path)[1].read_text())["parts"][0]["error"]["kind"]


OTHERS = {"none": None, "module": nn.Linear(2, 3), "class": (nn.Linear, torch.ones(2)), "pair": (1, 2)}


@pytest.mark.parametrize("returned", OTHERS.values(), ids=OTHERS)
def test_other_targets(returned: Any) -> None:
    with pytest.raises(TargetError):
        check_target("t", returned)


def test_an_error_in_the_users_code_is_the_users() -> None:
    with pytest.raises(UserCodeError, match="mat1 and mat2"):
        check_target("t", (nn.Linear(2, 3), torch.ones(4, 5)))
