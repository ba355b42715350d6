"""The program of a report runs, and shows what the report says, without hesse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hesse.check import check_derivatives

from .planted import Planted, draw

FILE = '''
import torch


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 6 * ctx.saved_tensors[0] ** 2 * g


class Clipped(Wrong):
    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g.clamp(-5, 5)


class ByMemory(Wrong):
    @staticmethod
    def backward(ctx, g):
        start = g.storage_offset()
        flat = g.as_strided((g.untyped_storage().nbytes() // g.element_size(),), (1,), 0)
        return 3 * ctx.saved_tensors[0] ** 2 * torch.cat([flat[start:], g.new_zeros(99)])[: g.numel()].view(g.shape)


def wrong(t):
    return Wrong.apply(t["a"]) + t["b"]


def clipped(x):
    return Clipped.apply(x)


def by_memory(x):
    return ByMemory.apply(x)
'''


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "reproduced.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import reproduced  # pyright: ignore[reportMissingImports]

    yield reproduced
    del sys.modules["reproduced"]


def shown(text: str, folder: Path) -> list[float]:
    assert "hesse" not in text
    run = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, check=True)
    return [float(word) for word in run.stdout.replace("\n", " ").split() if word.lstrip("-")[:1].isdigit()]


def test_a_wrong_factor(programs: Any, tmp_path: Path) -> None:
    report = check_derivatives(programs.wrong, {"a": draw(3), "b": draw(3, seed=1)})
    value, difference = shown(report.reproducer, tmp_path)
    assert "from reproduced import wrong as f" in report.reproducer and abs(value / difference - 2) < 1e-5


@pytest.mark.parametrize("name", ["clipped", "by_memory"])
def test_a_wrong_use(name: str, programs: Any, tmp_path: Path) -> None:
    report = check_derivatives(getattr(programs, name), draw(2, 3))
    assert not report.ok
    difference, size = shown(report.reproducer, tmp_path)
    assert difference > 0.01 * size


def test_what_cannot_be_written_is_to_be_filled_in() -> None:
    report = check_derivatives(lambda x: Planted.apply(lambda g, x: 2 * g, torch.sin, x), draw(20, 30))
    assert "f = ...  # fill in: " in report.reproducer and "test_reproducer.py line" in report.reproducer
    assert "torch.randn((20, 30)" in report.reproducer
    assert check_derivatives(torch.sin, draw(3)).reproducer == ""


def test_second_order_and_forward_mode_are_shown() -> None:
    detached = lambda x: Planted.apply(lambda g, x: g * x.detach().cos(), torch.sin, x)  # noqa: E731
    report = check_derivatives(detached, draw(3))
    assert "second pass" in report.reproducer
    compile(report.reproducer, "reproducer", "exec")
