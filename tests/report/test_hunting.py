"""What `hesse nan` makes of a TARGET: which steps run, what the page and the terminal say."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from hesse.core.errors import DataError, TargetError
from hesse.report import UserCodeError, hunt_target, print_hunt, write_hunt
from hesse.report.hunting import headline

CODE = """
import torch
from torch import nn

def once():
    x = torch.zeros(3, requires_grad=True)
    loss = (x / x).sum()  # the cause
    loss.backward()
    return loss

def sound():
    x = torch.ones(3, requires_grad=True)
    x.log().sum().backward()

def third():
    count = []
    x = torch.ones(3, requires_grad=True)
    def step():
        count.append(1)
        loss = (x * (3 - len(count))).log().sum()  # at the third call
        loss.backward()
        return loss
    return step

def model():
    torch.manual_seed(0)
    data = [(torch.ones(4, 2), torch.ones(4, 1)), (torch.zeros(4, 2), torch.ones(4, 1))]
    return nn.Linear(2, 1, bias=False), lambda out, y: out.pow(2).sum().sqrt(), data  # its slope at zero

def number():
    return nn.Linear(2, 3)

def raises():
    return torch.ones(2) @ torch.ones(3)

def leaves():
    raise SystemExit(0)

def empty():
    return nn.Linear(2, 3), nn.MSELoss(), []
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "steps.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("steps", None)


def line_of(comment: str) -> int:
    return next(number for number, line in enumerate(CODE.splitlines(), start=1) if comment in line)


def test_the_target_is_a_step(folder: Path) -> None:
    hunted = hunt_target("steps.py:once")
    assert hunted.report.line == line_of("# the cause")
    assert hunted.about["steps"] == 1
    page, numbers, dot = write_hunt(hunted, folder / "out")
    facts = json.loads(numbers.read_text())
    assert (facts["found"], facts["kind"], facts["line"]) == (True, "nan", line_of("# the cause"))
    assert "loss = (x / x).sum()" in page.read_text()
    assert str(folder) not in page.read_text()  # files are named from the working directory
    assert facts["file"] == str(folder / "steps.py")
    nothing = {"low": None, "high": None, "nans": 3, "infs": 0}
    assert facts["output"] == {"dtype": "float32", "shape": [3], **nothing}
    assert facts["inputs"] == [{"dtype": "float32", "shape": [3], "low": 0.0, "high": 0.0, "nans": 0, "infs": 0}] * 2
    assert dot.read_text().startswith("digraph")
    console = Console(file=io.StringIO(), width=160)
    print_hunt(hunted, console)
    assert "steps.py" in console.file.getvalue()


def test_the_target_returns_a_step(folder: Path) -> None:
    hunted = hunt_target("steps.py:third")
    assert (hunted.report.line, hunted.about["steps"]) == (line_of("# at the third call"), 3)
    assert "step 3" in headline(hunted)
    assert not hunt_target("steps.py:third", steps=2).report.found


def test_the_target_returns_a_model(folder: Path) -> None:
    hunted = hunt_target("steps.py:model")
    assert (hunted.report.line, hunted.report.phase, hunted.about["steps"]) == (line_of("# its slope at zero"), "backward", 2)
    assert hunted.report.node
    assert hunted.report.title in headline(hunted)
    page, numbers, _ = write_hunt(hunted, folder / "out")
    facts = json.loads(numbers.read_text())
    assert (facts["node"], facts["title"]) == (hunted.report.node, hunted.report.title)
    assert hunted.report.node in page.read_text()


def test_nothing_found(folder: Path) -> None:
    hunted = hunt_target("steps.py:sound")
    assert headline(hunted) == "No NaN or infinity reached a result in 1 step."
    assert len(write_hunt(hunted, folder / "out")) == 2


def test_other_targets(folder: Path) -> None:
    with pytest.raises(TargetError):
        hunt_target("steps.py:number")
    with pytest.raises(UserCodeError):
        hunt_target("steps.py:raises")
    with pytest.raises(UserCodeError, match=r"calling leaves\(\): SystemExit"):
        hunt_target("steps.py:leaves")
    with pytest.raises(DataError, match="no batch"):
        hunt_target("steps.py:empty")
