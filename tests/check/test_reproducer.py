"""The program of a report runs, and shows what the report says, without hesse."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hesse.check import check_derivatives, check_module

from .planted import Planted, draw, planted

FILE = """
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
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "reproduced.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import reproduced  # pyright: ignore[reportMissingImports]

    yield reproduced
    del sys.modules["reproduced"]


def shown(text: str, folder: Path) -> list[complex]:
    assert "hesse" not in text
    run = subprocess.run([sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, check=True)
    return numbers(run.stdout)


def numbers(printed: str) -> list[complex]:
    return [complex(line.split()[-1]) for line in printed.splitlines()]


def printed(text: str, given: Any) -> list[complex]:
    """What a program prints, with what it leaves open filled in."""
    assert "hesse" not in text
    code, count = re.subn(r"^(f|module) = \.\.\.  # fill in: .*$", r"\1 = given", text, flags=re.MULTILINE)
    assert count == 1
    out = io.StringIO()
    with contextlib.redirect_stdout(out), torch.random.fork_rng():
        exec(compile(code, "reproducer", "exec"), {"given": given})
    return numbers(out.getvalue())


def check_program(report: Any, given: Any) -> str:
    """The two numbers that a program prints differ, as those of the finding do; where it says so they are the same ones."""
    (finding, *_), text = (
        [f for f in report.findings if f"# {str(f).splitlines()[0]}\n" in report.reproducer],
        report.reproducer,
    )
    found, expected = printed(text, given)
    assert not abs(found - expected) <= 1e-9 * max(abs(found), abs(expected)) + 1e-300
    if "# the same numbers are printed here" in text:
        size = max(abs(complex(finding.value)), abs(complex(finding.expected)))
        defect = abs(complex(finding.value) - complex(finding.expected))
        assert abs(found - finding.value) <= 1e-6 * size
        assert abs(expected - finding.expected) <= min(1e-4 * size, 0.1 * defect)
        return "same"
    return "other"


def test_a_wrong_factor(programs: Any, tmp_path: Path) -> None:
    report = check_derivatives(programs.wrong, {"a": draw(3), "b": draw(3, seed=1)})
    value, difference = shown(report.reproducer, tmp_path)
    assert "from reproduced import wrong as f" in report.reproducer and abs(value / difference - 2) < 1e-8


def test_an_autograd_function_is_imported_by_its_class(programs: Any, tmp_path: Path) -> None:
    report = check_derivatives(programs.Wrong.apply, draw(3, dtype=torch.float32))
    value, difference = shown(report.reproducer, tmp_path)
    assert "from reproduced import Wrong\n\nf = Wrong.apply\n" in report.reproducer and abs(value / difference - 2) < 1e-8
    assert value == pytest.approx(report.findings[0].value) and difference == pytest.approx(report.findings[0].expected)


@pytest.mark.parametrize("name", ["clipped", "by_memory"])
def test_a_wrong_use(name: str, programs: Any, tmp_path: Path) -> None:
    report = check_derivatives(getattr(programs, name), draw(2, 3))
    assert not report.ok
    found, expected = shown(report.reproducer, tmp_path)
    assert abs(found - expected) > 0.01 * abs(expected)


def test_what_cannot_be_written_is_to_be_filled_in() -> None:
    report = check_derivatives(lambda x: Planted.apply(lambda g, x: 2 * g, torch.sin, x), draw(20, 30))
    assert "f = ...  # fill in: " in report.reproducer and "test_reproducer.py line" in report.reproducer
    assert "torch.randn((20, 30)" in report.reproducer
    assert check_derivatives(torch.sin, draw(3)).reproducer == ""


CACHE: dict[str, Any] = {}


def remembered(x: torch.Tensor) -> torch.Tensor:
    CACHE["x"] = x
    return x.sin()


def in_place(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    g[x < 0] = 0
    return g


def overwritten(g: torch.Tensor, n: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, None]:
    whole = torch.zeros_like(n)
    whole[i] = g
    return whole, None


def read(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.as_strided(g, (g.shape[1], g.shape[0]), (1, g.shape[1])) * 1.0


def first_rows(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([g[:2], 0 * g[2:]]) if len(g) > 3 else g


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a * b


SINGLE = torch.float32
WEIGHT = draw(3, 2, dtype=SINGLE)
cube = planted(lambda x: x**3, lambda g, x: 6 * g * x**2)
nearly = planted(lambda x: (x * x + 1e-3).sqrt(), lambda g, x: g * x / x.abs())
large = planted(lambda x: x.clamp(-3, 3), lambda g, x: g)
scattered = planted(lambda w, i: w[i], overwritten)
unconjugated = planted(product, lambda g, a, b: (g * b, g * a))
fixed = planted(torch.square, lambda g, x: 2 * x * g.sign())
halves = planted(torch.sin, lambda g, x: (g.half() * x.cos().half()).to(g.dtype))
cut = planted(lambda x: x**3, lambda g, x: 3 * g * x.detach() ** 2)
by_cache = planted(remembered, lambda g, x: g * CACHE["x"].cos())
written_to = planted(torch.relu, in_place)
turned = planted(lambda x: x.mT * 1.0, read)
turned_rows = planted(lambda x: 1.0 * x, lambda g, x: g if 0 not in g.stride() else 2 * g)
few = planted(lambda x: x * 1.0, first_rows)


class FirstOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return (g * w, g * x) if ctx.needs_input_grad[0] else (None, 0 * g)


class Cube(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cube(x)


KINDS: dict[str, tuple[Callable[[Any], Any], Any, str]] = {
    "factor": (cube, draw(4, dtype=SINGLE), "same"),
    "small error": (nearly, draw(5, dtype=SINGLE), "same"),
    "many elements": (cube, draw(90, dtype=SINGLE), "other"),
    "another region": (large, draw(6, dtype=SINGLE), "same"),
    "an index twice": (lambda t: scattered(t["w"], t["i"]), {"w": draw(5, 3), "i": torch.tensor([1, 3, 0])}, "same"),
    "every index": (lambda w: scattered(w, torch.tensor([1, 3, 3])), draw(5, 3, dtype=SINGLE), "same"),
    "complex": (lambda t: unconjugated(*t), tuple(torch.complex(draw(3, seed=s), draw(3, seed=s + 1)) for s in (0, 2)), "same"),
    "not linear": (fixed, draw(4), "same"),
    "short type": (halves, draw(4, dtype=SINGLE), "other"),
    "second order": (cut, draw(4, dtype=SINGLE), "other"),
    "another call": (by_cache, draw(4, dtype=SINGLE), "other"),
    "writes": (written_to, draw(4, 3, dtype=SINGLE), "other"),
    "strides": (turned, draw(3, 4, dtype=SINGLE), "same"),
    "other rows": (few, draw(3, 2, dtype=SINGLE), "same"),
    "a subset": (lambda t: FirstOnly.apply(*t), (draw(3), draw(3, seed=1)), "same"),
    "a float": (lambda t: t["x"] * float(t["s"]) ** 2, {"x": draw(3, dtype=SINGLE), "s": 2.0}, "same"),
    "random numbers": (lambda x: cube(x * torch.rand_like(x)), draw(4, dtype=SINGLE), "other"),
    "a repeated cotangent": (turned_rows, draw(3, 4), "other"),
    "a cotangent inside": (lambda x: turned(x).exp() + x.mT.exp(), draw(3, 4), "same"),
    "a constant in float32": (lambda x: cube(x @ WEIGHT), draw(4, 3, dtype=SINGLE), "other"),
    "a module as f": (nn.Sequential(nn.Linear(3, 2), Cube()), draw(4, 3, dtype=SINGLE), "same"),
    "a counter": (lambda x: x * (1 + next(COUNT)), draw(3), "other"),
}
COUNT = iter(range(10**6))


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_shows_the_finding(kind: str) -> None:
    f, x, numbers = KINDS[kind]
    report = check_derivatives(f, x)
    assert not report.ok
    assert check_program(report, f) == numbers, report.reproducer


class Rows(nn.Module):
    """An embedding whose padding row gets no gradient, behind a norm with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(draw(5, 3, dtype=SINGLE))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.norm(planted(lambda w: w[i], lambda g, w: 2 * torch.zeros_like(w).index_add(0, i, g))(self.w))


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(draw(3, dtype=SINGLE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return FirstOnly.apply(x, self.w)


@pytest.mark.parametrize(("module", "given"), [(Rows(), torch.tensor([1, 0, 3, 3])), (Weighted(), draw(3, dtype=SINGLE))])
def test_the_program_of_a_module_shows_the_finding(module: nn.Module, given: torch.Tensor) -> None:
    report = check_module(module, given)
    assert f"module = ...  # fill in: {type(module).__name__}, .train()\n" in report.reproducer
    assert check_program(report, module) == "same"


def test_what_raises_in_the_check_raises_in_the_program() -> None:
    def rule(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("seven")

    f = planted(torch.sin, rule)
    report = check_derivatives(f, draw(3))
    with pytest.raises(ValueError, match="seven"):
        printed(report.reproducer, f)


def test_what_raises_at_other_points_raises_there() -> None:
    def rule(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 2 * x * g.view(3, 2) if len(g) < 4 else 2 * x * g.view(3, 3)

    f = planted(torch.square, rule)
    report = check_derivatives(f, draw(3, 2), level="full")
    assert report.findings[0].check == "reverse mode at 4 rows" and "raises RuntimeError" in report.findings[0].diagnosis
    with pytest.raises(RuntimeError, match="shape"):
        printed(report.reproducer, f)


def test_reports_keep_no_tensors() -> None:
    report = check_derivatives(cube, draw(3))
    assert report.findings and all(finding.place is None for finding in report.findings)
