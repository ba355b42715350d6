"""The programs that `hesse check` writes run as they are, and show what was found."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hesse.report import call_target, check_target, write_check
from hesse.report.reproducing import filled, from_target

CODE = """
import torch
from torch import nn

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0].cos()

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        assert not self.training, "the mode that was checked"
        return Doubled.apply(self.linear(x))

def doubled(x):
    return Doubled.apply(x)

def by_name():
    return doubled, torch.randn(3)

def module():
    return Layer().eval(), torch.randn(5, 3)

def nameless():
    return lambda x: Doubled.apply(x) * 3, torch.randn(4)

def model():
    return Layer().eval(), nn.MSELoss(), (torch.randn(6, 3), torch.randn(6, 2))

def loss():
    data = torch.randn(6, 3), torch.arange(6) % 2
    return nn.Linear(3, 2), lambda output, target: nn.functional.cross_entropy(Doubled.apply(output), target), data

def pair():
    data = torch.randn(6, 3), torch.randn(6, 2)
    return (lambda p, x: Doubled.apply(x @ p["w"]), {"w": torch.randn(3, 2)}), nn.MSELoss(), data
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "wrong_ones.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with torch.random.fork_rng():
        yield tmp_path
    sys.modules.pop("wrong_ones", None)


def programs(name: str, folder: Path) -> list[Path]:
    torch.manual_seed(3)
    checked = check_target(name, call_target(name), seed=3)
    assert not checked.ok
    return [path for path in write_check(checked, folder / "out") if path.suffix == ".py"]


def printed(program: Path, capsys: pytest.CaptureFixture[str]) -> tuple[float, float]:
    capsys.readouterr()
    runpy.run_path(str(program), run_name="__main__")
    gradient, difference = capsys.readouterr().out.splitlines()
    return float(gradient.split()[-1]), float(difference.split()[-1])


@pytest.mark.parametrize("function", ["module", "nameless", "by_name", "model", "loss", "pair"])
def test_the_program_of_a_target_prints_twice_the_derivative(
    folder: Path, function: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = programs(f"wrong_ones.py:{function}", folder)
    assert program.name == "reproduce.py"
    assert "fill in" not in program.read_text()
    monkeypatch.chdir(folder / "out")  # wherever it is run
    gradient, difference = printed(program, capsys)
    assert gradient == pytest.approx(2 * difference, rel=0.02)


def test_a_module_in_place_of_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = programs("wrong_ones:nameless", folder)
    gradient, difference = printed(program, capsys)
    assert gradient == pytest.approx(2 * difference, rel=0.02)


def test_a_program_for_each_part_that_is_wrong(folder: Path) -> None:
    with (folder / "wrong_ones.py").open("a") as code:
        code.write("\ndef both():\n    return Layer().eval(), loss()[1], loss()[2]\n")
    assert [path.name for path in programs("wrong_ones.py:both", folder)] == ["reproduce.py", "reproduce-2.py"]


def test_an_operator_is_checked_by_its_law() -> None:
    code = filled("hesse.assert_operator(A, laws=['adjoint'])", "A = target()")
    assert code == "import torch\n\nimport hesse\n\nA = target()\nhesse.assert_operator(A, laws=['adjoint'])\n"


def test_odd_names_are_quoted(folder: Path) -> None:
    (folder / "it's.py").write_text("def make():\n    return 7\n")
    scope: dict[str, object] = {"torch": torch}
    exec(from_target("it's.py:make", 0), scope)
    assert callable(scope["target"])
    assert scope["target"]() == 7


def test_what_is_not_open_stays(folder: Path) -> None:
    assert filled("f = torch.sin\n", "f = target()[0]") == "f = torch.sin\n"
