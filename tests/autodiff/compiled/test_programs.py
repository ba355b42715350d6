"""Every mode of `hesse.grad` on the suite of programs: fresh data, changed closures, other shapes, second order."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse

from . import oracle
from .programs import BY_NAME, PROGRAMS
from .suite import Program

MODES = ("off", "replay", "native")
KEPT = {"off": 200, "replay": 16, "native": 2}
KEPT_SECOND = {"off": 200, "replay": 8, "native": 1}
TOLERANCE = {torch.float64: 1e-10, torch.complex128: 1e-10, torch.float32: 2e-5}
HALF = 4e-2
Sweep = Callable[[Sequence[Program], int], list[Program]]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact(number: complex) -> torch.dtype:
    """The dtype that holds a Python number as it is."""
    return torch.complex128 if isinstance(number, complex) else torch.float64


def close(found: Any, wanted: Any, program: Program, what: str) -> None:
    """Leaf by leaf: numbers to rounding, tensors of equal shape and dtype, everything else equal."""
    ours, theirs = list(oracle.walk(found)), list(oracle.walk(wanted))
    assert len(ours) == len(theirs), f"{what}: {len(ours)} leaves, wanted {len(theirs)}"
    for a, b in zip(ours, theirs, strict=True):
        if not isinstance(a, (Tensor, float, complex)) and not isinstance(b, (Tensor, float, complex)):
            assert a == b, what
            continue
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            assert a.shape == b.shape, what
        a, b = (t.detach() if isinstance(t, Tensor) else torch.tensor(t, dtype=exact(t)) for t in (a, b))
        tolerance = HALF if "half" in program.flags else TOLERANCE[a.dtype if a.dtype in TOLERANCE else torch.float64]
        a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b.to(a.dtype)))
        scale = float(b.abs().amax()) if b.numel() and b.isfinite().all() else 1.0
        options = {"rtol": tolerance, "atol": tolerance * max(scale, 1e-3), "equal_nan": True}
        torch.testing.assert_close(a, b, **options, msg=f"{what}: found {a}, wanted {b}")


class Twins:
    """A program twice, sharing nothing: hesse differentiates one, plain torch the other, on equal data."""

    def __init__(self, program: Program, mode: str, dtype: torch.dtype = torch.float64) -> None:
        self.program, self.dtype = program, dtype
        self.f, self.plain = (program.make(dtype, seeded(0))[0] for _ in range(2))
        self.df = hesse.grad(self.f, compile=mode)
        self.kept: list[tuple[Any, Any]] = []

    def change(self) -> None:
        for f in (self.f, self.plain):
            f.change()

    def compare(self, seed: int, *, extra: int = 0, change: bool = False) -> None:
        (_, args, kwargs), (_, plain_args, plain_kwargs) = (
            self.program.make(self.dtype, seeded(seed), extra) for _ in range(2)
        )
        if change:
            self.change()
        what = f"{self.program} (data {seed}, extra {extra}, changed {change})"
        torch.manual_seed(seed)
        gradients, out, _ = oracle.first(self.plain, plain_args, plain_kwargs)
        random_state = torch.get_rng_state()
        torch.manual_seed(seed)
        result = self.df(*args, **kwargs)
        assert torch.equal(torch.get_rng_state(), random_state), f"{what}: the random state after the call"
        wanted = iter(gradients)
        close(result.grads, oracle.rebuild(plain_args[0], lambda _: next(wanted)), self.program, f"{what}: gradients")
        close(tuple(result[1:]), out if isinstance(out, tuple) else (out,), self.program, f"{what}: values")
        close((args, kwargs), (plain_args, plain_kwargs), self.program, f"{what}: arguments afterwards")
        if "mutates" in self.program.flags and hasattr(self.f, "state"):
            close(self.f.state(), self.plain.state(), self.program, f"{what}: state afterwards")
        else:
            self.kept.append((result, copy.deepcopy([t.detach() if isinstance(t, Tensor) else t for t in oracle.walk(result)])))

    def kept_results_stand(self) -> None:
        """Later calls wrote into no earlier result."""
        for result, snapshot in self.kept:
            for now, then in zip(oracle.walk(result), snapshot, strict=True):
                if isinstance(now, Tensor):
                    torch.testing.assert_close(now.detach(), then, rtol=0, atol=0, equal_nan=True)


def agrees(program: Program, mode: str) -> None:
    twins = Twins(program, mode)
    for seed in range(3):
        twins.compare(seed)
    if hasattr(twins.f, "change"):
        twins.compare(3, change=True)
        twins.compare(4)
    twins.compare(5, extra=2)
    twins.compare(6)
    twins.kept_results_stand()


def agrees_at_second_order(program: Program, mode: str) -> None:
    f, plain = (program.make(torch.float64, seeded(0))[0] for _ in range(2))
    inner = hesse.grad(f, compile=mode)

    def of_gradients(params: Any, *args: Any, **kwargs: Any) -> Tensor:
        leaves = oracle.walk(inner(params, *args, **kwargs)[0])
        return oracle.weighted([g for g in leaves if isinstance(g, Tensor)])

    outer = hesse.grad(of_gradients, compile=mode)
    for seed, extra in ((0, 0), (1, 0), (2, 1)):
        (_, args, kwargs), (_, plain_args, plain_kwargs) = (program.make(torch.float64, seeded(seed), extra) for _ in range(2))
        torch.manual_seed(seed)
        wanted = iter(oracle.second(plain, plain_args, plain_kwargs))
        torch.manual_seed(seed)
        found = outer(*args, **kwargs).grads
        close(found, oracle.rebuild(plain_args[0], lambda _: next(wanted)), program, f"{program}, second order")  # noqa: B023


def failures(programs: Sequence[Program], mode: str, check: Callable[[Program, str], None]) -> list[str]:
    found = []
    for program in programs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                check(program, mode)
            except Exception as error:
                found.append(f"{program} [{mode}]: {type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("mode", MODES)
def test_programs(mode: str, sweep: Sweep) -> None:
    wrong = failures(sweep(PROGRAMS, KEPT[mode]), mode, agrees)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("mode", MODES)
def test_second_order(mode: str, sweep: Sweep) -> None:
    twice = [program for program in PROGRAMS if "second" in program.flags]
    wrong = failures(sweep(twice, KEPT_SECOND[mode]), mode, agrees_at_second_order)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("mode", MODES)
def test_single_precision(mode: str, sweep: Sweep) -> None:
    def check(program: Program, mode: str) -> None:
        twins = Twins(program, mode, torch.float32)
        twins.compare(0)
        twins.compare(1)

    names = ("nested_mlp", "conv_net", "lstm_cell_loop", "layer_norm", "gradient_penalty", "hessian_product", "fourier")
    wrong = failures(sweep([BY_NAME[name] for name in names], {"off": 7, "replay": 4, "native": 1}[mode]), mode, check)
    assert not wrong, "\n".join(wrong)


def test_the_suite_is_what_it_says() -> None:
    assert len(PROGRAMS) == len(BY_NAME) >= 100
    for program in PROGRAMS:
        f, args, kwargs = program.make(torch.float64, seeded(7))
        _, again, _ = program.make(torch.float64, seeded(7))
        close(args, again, program, f"{program}: twins")
        before = copy.deepcopy((args, f.state() if hasattr(f, "state") else None))
        torch.manual_seed(1)
        random_state = torch.get_rng_state()
        oracle.first(f, args, kwargs)
        drew = not torch.equal(torch.get_rng_state(), random_state)
        assert drew == ("random" in program.flags), program
        after = (args, f.state() if hasattr(f, "state") else None)
        try:
            close(after, before, program, "state")
        except AssertionError:
            assert "mutates" in program.flags, program
        else:
            assert "mutates" not in program.flags, program


class Stale:
    """What a compiled mode without guards would do: the first answer for each shape, for good."""

    def __init__(self, f: Callable[..., Any], compile: str) -> None:
        self.df, self.answers = hesse.grad(f), {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = str([leaf.shape for leaf in oracle.walk(args) if isinstance(leaf, Tensor)])
        if key not in self.answers:
            self.answers[key] = self.df(*args, **kwargs)
        return self.answers[key]


def test_stale_answers_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    unchanging = ("empty_batch",)
    fixed = Stale
    with monkeypatch.context() as patch:
        original = hesse.grad
        patch.setattr("hesse.grad", lambda f, compile=None: fixed(f, compile) if compile else original(f))
        wrong = failures([p for p in PROGRAMS if p.name not in unchanging], "replay", agrees)
    assert len(wrong) == len(PROGRAMS) - len(unchanging)
