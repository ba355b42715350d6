"""How many of the derivative programs of the test suite a way gets right, on fresh data, changed closures and other shapes."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from tests.autodiff.compiled import oracle
from tests.autodiff.compiled.programs import BY_NAME, PROGRAMS
from tests.autodiff.compiled.suite import Program
from torch import Tensor

import hesse
from hesse.autodiff.compiled.function import CompileNotice
from hesse.core.errors import HesseError

ORDERS = ("first", "second")
OUTCOMES = ("right", "partly", "refused", "failed", "wrong")
TOLERANCE = {torch.float64: 1e-8, torch.complex128: 1e-8, torch.float32: 1e-4}
HALF = 4e-2
Derive = Callable[..., Any]  # (params, *args, **kwargs) -> what is compared with the oracle, as a list of tensors


def cases(count: int) -> list[str]:
    """The names of `count` programs, those with a second derivative twice: ``name:first``, ``name:second``."""
    chosen = sorted(random.Random(0).sample([p.name for p in PROGRAMS], min(count, len(PROGRAMS))))
    first = [f"{name}:first" for name in chosen]
    return first + [f"{name}:second" for name in chosen if "second" in BY_NAME[name].flags]


def outcome(case: str, way: str) -> dict[str, str]:
    """One of `OUTCOMES`, and why, for a case of `cases` and "replay", "native" or "compile"."""
    name, order = case.split(":")
    program = BY_NAME[name]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            difference = _difference(program, order, way)
        except HesseError as error:
            return {"status": "refused", "reason": _line(error)}
        except Exception as error:  # whatever a compiler raises
            return {"status": "failed", "reason": f"{type(error).__name__}: {_line(error)}"}
    if difference:
        return {"status": "wrong", "reason": difference}
    notice = next((_line(w.message) for w in caught if issubclass(w.category, CompileNotice)), "")
    notice = notice or (graph_break() if way == "compile" else "")
    return {"status": "partly", "reason": notice} if notice else {"status": "right"}


def graph_break() -> str:
    """Why `torch.compile` did not make one graph of what it saw last, or nothing."""
    counters = torch._dynamo.utils.counters
    if counters["graph_break"]:
        return " ".join(str(next(iter(counters["graph_break"]))).split())[:160]
    return "" if counters["stats"].get("unique_graphs") else "no graph was made"


def _difference(program: Program, order: str, way: str) -> str:
    """Where the results differ from those of plain `torch.autograd.grad` on an equal twin; nothing if nowhere."""
    f, plain = (program.make(torch.float64, _seeded(0))[0] for _ in range(2))
    derive, reference = _derivative(f, order, way), _by_oracle(plain, order)
    for seed, extra, change in ((0, 0, False), (1, 0, False), (2, 0, True), (3, 2, False), (4, 0, False)):
        if change and hasattr(f, "change"):
            f.change()
            plain.change()
        results = []
        for compute in (reference, derive):
            _, args, kwargs = program.make(torch.float64, _seeded(seed), extra)
            torch.manual_seed(seed)
            results.append(compute(*args, **kwargs))
        if not _agree(*results, half="half" in program.flags):
            return f"data {seed}, {extra} more samples" + (", changed closure" if change else "")
    return ""


def _by_oracle(f: Callable[..., Any], order: str) -> Derive:
    def derive(*args: Any, **kwargs: Any) -> list[Any]:
        if order == "second":
            return oracle.second(f, args, kwargs)
        gradients, out, _ = oracle.first(f, args, kwargs)
        return [*gradients, *oracle.walk(out)]

    return derive


def _derivative(f: Callable[..., Any], order: str, way: str) -> Derive:
    if way == "compile":
        return _by_oracle(torch.compile(f), order)
    df: Any = hesse.grad(f, compile=way)
    if order == "second":
        df = hesse.grad(_weighted(df), compile=way)

    def derive(*args: Any, **kwargs: Any) -> list[Any]:
        result = df(*args, **kwargs)
        grads: list[Any] = []
        oracle.rebuild(result.grads, grads.append)
        return grads if order == "second" else [*grads, *oracle.walk(tuple(result[1:]))]

    return derive


def _weighted(inner: Callable[..., Any]) -> Callable[..., Tensor]:
    def of_gradients(params: Any, *args: Any, **kwargs: Any) -> Tensor:
        grads = inner(params, *args, **kwargs).grads
        return oracle.weighted([g for g in oracle.walk(grads) if isinstance(g, Tensor)])

    return of_gradients


def _agree(wanted: list[Any], found: list[Any], *, half: bool) -> bool:
    if len(wanted) != len(found):
        return False
    for a, b in zip(wanted, found, strict=True):
        numbers = isinstance(a, (Tensor, float, complex))
        if not numbers and a != b:
            return False
        if numbers and not _near(_exactly(a), _exactly(b), half=half):
            return False
    return True


def _exactly(number: Any) -> Tensor:
    """A tensor, or a Python number in a dtype that holds it as it is."""
    if isinstance(number, Tensor):
        return number.detach()
    return torch.tensor(number, dtype=torch.complex128 if isinstance(number, complex) else torch.float64)


def _near(a: Tensor, b: Tensor, *, half: bool) -> bool:
    tolerance = HALF if half else TOLERANCE.get(a.dtype, 1e-8)
    a, b = a.to(torch.complex128), b.to(torch.complex128)
    finite = a[a.isfinite()]
    scale = max(float(finite.abs().max()) if finite.numel() else 1.0, 1e-3)
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:160]
