"""Per-sample quantities of one batch after the other: captured, replayed, compiled, and by torch.func under torch.compile.

Every way has the same work: from the model's present parameters and a batch to the quantity, as a training step needs it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hesse
from benchmarks.compiled.cases import CASES
from benchmarks.compiled.timing import in_turn
from hesse.autodiff.compiled.mode import CompileNotice

QUANTITIES: dict[str, str] = {"norms": "norms", "clipped": "clipped sum"}
BOUND = 0.1
OURS = ("direct", "replay", "native")
PEER = ("vmap", "compiled_vmap")
_WARM = 5


def ask(kind: str) -> Callable[[Any], Any]:
    """One of `QUANTITIES`, of a Jacobian."""
    return (lambda J: J.norms()) if kind == "norms" else (lambda J: J.clipped_sum(BOUND))


def measure_rows(name: str) -> dict[str, Any]:
    """All quantities of one model by hesse: seconds of each way, and of compiling."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, loss, (x, y) = CASES[name]()
    params, found = list(model.parameters()), {}
    for kind in QUANTITIES:
        quantity = ask(kind)
        ways = {way: hesse.compile_rows(model, loss, quantity, compile=way) for way in ("replay", "native")}
        expected = numbers(quantity(hesse.parameter_jacobian(model, loss, (x, y))))
        fails: dict[str, str] = {}
        for way, rows in list(ways.items()):
            reason = _not_taken(rows, (x, y), expected)
            if reason:
                fails[f"{way}_fails"] = reason
                del ways[way]
        runs: dict[str, Callable[[], Any]] = {
            "gradient": lambda: torch.autograd.grad(loss(model(x), y), params),
            "direct": lambda quantity=quantity: quantity(hesse.parameter_jacobian(model, loss, (x, y))),
            **{way: lambda rows=rows: rows((x, y)) for way, rows in ways.items()},
        }
        seconds = {f"{way}_seconds": rows.compile_seconds for way, rows in ways.items()}
        found[kind] = {**in_turn(runs), **seconds, **fails, "sum": float(expected.double().abs().sum())}
    return found


def _not_taken(rows: Any, batch: tuple[Tensor, Tensor], expected: Tensor) -> str:
    """Why a way is not to be timed: it is not taken; "" where it is.

    Raises:
        RuntimeError: its result is another one.
    """
    result = expected
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", CompileNotice)
            for _ in range(_WARM):
                result = numbers(rows(batch))
    except CompileNotice as notice:
        return str(notice).partition(") ")[2]
    if not rows.replays or not torch.allclose(result, expected, rtol=1e-3, atol=1e-5):
        raise RuntimeError(f"{rows!r}: {rows.direct or 'another result'}")
    return ""


def measure_peer(name: str) -> dict[str, Any]:
    """The same by ``vmap(grad(...))``, plain and under `torch.compile`; a way that fails says why."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, loss, (x, y) = CASES[name]()
    found: dict[str, Any] = {}

    def of_one(p: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        return loss(torch.func.functional_call(model, p, (one.unsqueeze(0),)), target.unsqueeze(0))

    per_sample = torch.func.vmap(torch.func.grad(of_one), (None, 0, 0), randomness="different")
    for kind in QUANTITIES:

        def quantity(p: dict[str, Tensor], x: Tensor, y: Tensor, kind: str = kind) -> Any:
            rows = per_sample(p, x, y)
            norms = torch.stack([g.flatten(1).square().sum(1) for g in rows.values()]).sum(0).sqrt()
            if kind == "norms":
                return norms
            scale = (BOUND / norms).clamp(max=1)
            return {key: torch.einsum("n,n...->...", scale, g) for key, g in rows.items()}

        def run(way: Callable[..., Any]) -> Any:
            return way({key: p.detach() for key, p in model.named_parameters()}, x, y)

        compiled = torch.compile(quantity)
        runs: dict[str, Callable[[], Any]] = {}
        found[kind] = {}
        for way, function in (("vmap", quantity), ("compiled_vmap", compiled)):
            start = time.perf_counter()
            try:
                first = numbers(run(function))
                for _ in range(_WARM):
                    run(function)
            except Exception as error:  # of whatever kind: it stands in the table
                found[kind][f"{way}_fails"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}"
                continue
            found[kind][f"{way}_seconds"] = time.perf_counter() - start
            found[kind].setdefault("sum", float(first.double().abs().sum()))
            runs[way] = lambda function=function: run(function)
        found[kind] |= in_turn(runs) if runs else {}
    return found


def numbers(result: Any) -> Tensor:
    """All numbers of a tensor or a dict of them."""
    return torch.cat([part.detach().flatten() for part in result.values()]) if isinstance(result, dict) else result.detach()
