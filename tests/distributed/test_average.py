"""Operators over the batches of several processes equal those over all data in one, whatever the shards."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import hesse
from hesse.core.errors import DataError, MemoryBudgetError, UnsupportedError
from hesse.distributed import SpreadData, spread
from hesse.operators import Dense

from . import cases
from .ranks import run_ranks

RANKS = [2] if os.environ.get("HESSE_TEST_ALL", "") in ("", "0") else [1, 2, 3, 4]
FISHERS = ("expected", "sampled", "empirical", "observed")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def data_of(rank: int, ranks: int, made: list[cases.Batch] | None = None) -> SpreadData:
    return spread(cases.part(rank, ranks, made), timeout=60)


def quantities(net: nn.Module, data: Any) -> dict[str, Any]:
    """What the test compares, of data in one process or in several."""
    loss = cases.KNOWN
    H, G = hesse.loss_hessian(net, loss, data), hesse.ggn(net, loss, data)
    V = G.in_space.normal(3)
    found = {
        "hessian": hesse.dense(H), "ggn": hesse.dense(G), "block": G.in_space.ravel(G.mm(V), 1), "mass": G.mass,
        "diagonal": hesse.diagonal(G), "hessian's diagonal": hesse.diagonal(H),
        "gradient": H.in_space.ravel(H.gradient),
        "transposed": hesse.dense(H.T), "sum": hesse.dense(G + 0.5 * hesse.identity(G.in_space)),
        "trace": float(hesse.trace(G)), "norm": float(hesse.norm(H)), "eigenvalues": hesse.eigsh(G, 2).values,
        "density": hesse.spectrum(G, generator=generator()).density,
        "estimate": hesse.trace(H, method="hutchinson", rtol=0.3, generator=generator()).value,
    }  # fmt: skip
    for kind in FISHERS:
        found[f"fisher {kind}"] = hesse.dense(hesse.fisher(net, loss, data, kind=kind))
    found["sampled ggn"] = hesse.dense(hesse.ggn(net, loss, data, kind="sampled", samples=2, generator=generator()))
    for approximation in ("expand", "reduce"):
        found[f"kfac {approximation}"] = hesse.dense(hesse.kfac(net, loss, data, approximation=approximation))
    found["ekfac"] = hesse.dense(hesse.ekfac(net, loss, data, kind="empirical"))
    return found


def on_rank(rank: int, ranks: int) -> dict[str, Any]:
    return quantities(cases.model(), data_of(rank, ranks))


@pytest.mark.parametrize("ranks", RANKS)
def test_equals_one_process(ranks: int) -> None:
    net = cases.model()
    by_rank, alone = run_ranks(on_rank, ranks, ranks), quantities(net, cases.batches())
    exact = {"hessian": cases.full_hessian(net, cases.KNOWN, cases.whole()), "ggn": cases.full_ggn(net, cases.whole())}
    gradient = torch.autograd.grad(cases.KNOWN(net(cases.whole()[0]), cases.whole()[1]), list(net.parameters()))
    exact["gradient"] = torch.cat([leaf.reshape(-1) for leaf in gradient])
    exact["trace"] = float(exact["ggn"].trace())
    exact["mass"] = sum(float(cases.WEIGHTS[t]) for t in cases.whole()[1].tolist() if t != 2)
    for name, expected in {**alone, **exact}.items():
        for found in by_rank:
            torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")
            if isinstance(expected, Tensor):
                assert torch.equal(found[name], by_rank[0][name]), f"{name} differs between processes"


class Weighted(Dense):
    """A matrix with a mass of its own, neither symmetric nor square."""

    def __init__(self, matrix: Tensor, mass: float) -> None:
        super().__init__(matrix)
        self._own = mass

    @property
    def mass(self) -> float:
        return self._own


def matrices(dtype: torch.dtype) -> list[tuple[Tensor, float]]:
    source = torch.Generator().manual_seed(1)
    masses = [2.0, 0.5, 3.0, 0.0, 1.0]
    return [(torch.randn(3, 4, generator=source, dtype=dtype), mass) for mass in masses]


def many_of_16_bits() -> Tensor:
    """Of which a sum in their own dtype comes to stand still."""
    return torch.rand(2400, 3, 4, generator=torch.Generator().manual_seed(2)).bfloat16()


def averaged(rank: int, ranks: int) -> list[Any]:
    found = []
    for dtype in (torch.float64, torch.complex128, torch.float32, torch.bfloat16):
        pairs = [(m.to(dtype), mass) for m, mass in matrices(torch.float64 if dtype.is_floating_point else dtype)]
        group = dist.new_group(list(range(ranks)))
        A = hesse.average(lambda pair: Weighted(*pair), spread(cases.part(rank, ranks, pairs), group=group, timeout=60))
        v, u = torch.arange(4).to(dtype), torch.arange(3).to(dtype)
        found.append((A @ v, A.T @ u, A.mm(torch.stack([v, v + 1])), A.mass))
    added = hesse.average(lambda pair: Weighted(*pair), spread(cases.part(rank, ranks, pairs), timeout=60), additive=True)
    many = [(m, 2.0) for m in many_of_16_bits()]
    B = hesse.average(lambda pair: Weighted(*pair), spread(many[rank::ranks], timeout=60))
    return [B @ torch.ones(4).bfloat16(), *found, (added @ v, added.T @ u, added.mm(torch.stack([v, v + 1])), added.mass)]


@pytest.mark.parametrize("ranks", RANKS)
def test_weights_dtypes_and_transposes(ranks: int) -> None:
    dtypes = (torch.float64, torch.complex128, torch.float32, torch.bfloat16, torch.bfloat16)
    for of_many, *found in run_ranks(averaged, ranks, ranks):
        torch.testing.assert_close(of_many.double(), many_of_16_bits().double().mean(0).sum(1), rtol=0.02, atol=0)
        for dtype, (product, transposed, block, mass) in zip(dtypes, found, strict=True):
            kind = torch.complex128 if dtype.is_complex else torch.float64
            pairs = [(m.to(dtype).to(kind), weight) for m, weight in matrices(kind)]
            A = sum(m * weight for m, weight in pairs) / 6.5
            if mass == 1.0:
                A = sum(m for m, _ in pairs)
            else:
                assert mass == 6.5
            v, u = torch.arange(4).to(kind), torch.arange(3).to(kind)
            slack = {torch.float32: 1e-5, torch.bfloat16: 3e-2}.get(dtype, 1e-13)
            assert product.dtype == dtype
            for got, wanted in ((product, A @ v), (transposed, A.T @ u), (block, torch.stack([A @ v, A @ (v + 1)]))):
                torch.testing.assert_close(got.to(kind), wanted, rtol=slack, atol=slack)


def all_ignored(rank: int, everywhere: bool) -> Any:
    x = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    mine = [(x, torch.full((4,), 2))] if rank == 0 or everywhere else [(x, torch.tensor([0, 1, 3, 1]))]
    G = hesse.ggn(cases.model(), cases.KNOWN, spread(mine, timeout=60))
    return hesse.dense(G), G.mass


def test_ranks_whose_targets_are_all_ignored_count_nothing() -> None:
    x = torch.randn(4, 3, generator=generator(), dtype=torch.float64)
    expected = cases.full_ggn(cases.model(), (x, torch.tensor([0, 1, 3, 1])))
    for found, mass in run_ranks(all_ignored, 2, False):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert mass == pytest.approx(0.5 + 2 + 0.25 + 2)


def refused(rank: int, ask: Callable[[int], Any]) -> tuple[str, str]:
    try:
        ask(rank)
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def nothing_counts(rank: int) -> Any:
    return all_ignored(rank, True)


def no_batch(rank: int) -> Any:
    return hesse.ggn(cases.model(), cases.KNOWN, spread([], timeout=60))


def no_batch_for_kfac(rank: int) -> Any:
    return hesse.kfac(cases.model(), cases.KNOWN, spread([], timeout=60))


def derivative(rank: int) -> Any:
    G = hesse.ggn(cases.model(), cases.KNOWN, data_of(rank, 2))
    return G.flat @ torch.ones(44, dtype=torch.float64, requires_grad=True)


def several(rank: int) -> list[tuple[str, str]]:
    return [refused(rank, ask) for ask in (nothing_counts, no_batch, no_batch_for_kfac, derivative)]


def test_what_has_no_answer_is_refused_on_all_processes() -> None:
    for kinds in run_ranks(several, 2):
        assert [kind for kind, _ in kinds[:3]] == [DataError.__name__] * 3
        assert kinds[3][0] in (UnsupportedError.__name__, "DistributedError") and "requires grad" in kinds[3][1]


def test_data_that_are_spread_are_not_taken_for_all() -> None:
    data = spread(cases.batches())
    with pytest.raises(hesse.HesseError, match="this process only"):
        list(data)
    with pytest.raises(hesse.HesseError):
        hesse.parameter_jacobian(cases.model(), cases.KNOWN, data)
    with pytest.raises(hesse.HesseError, match="one-shot"):
        spread(iter(cases.batches()))


class Roomy(Dense):
    """A matrix whose products do not fit while another one is alive."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix)
        self.held_bytes = 8
        ALIVE.add(self)

    def mm(self, V: Tensor) -> Tensor:
        if len(ALIVE) > 1:
            raise MemoryBudgetError("A product of a block.", f"{len(ALIVE)} operators", "free some")
        return super().mm(V)


ALIVE: weakref.WeakSet[Roomy] = weakref.WeakSet()


def test_kept_operators_are_given_up_where_a_product_does_not_fit() -> None:
    pairs = [matrix for matrix, _ in matrices(torch.float64)]
    A = hesse.average(Roomy, spread(pairs))
    v = torch.ones(4, dtype=torch.float64)
    expected = torch.stack(pairs).mean(0)
    torch.testing.assert_close(A @ v, expected @ v)
    assert "5 of 5 batches kept" in repr(A)
    torch.testing.assert_close(A.mm(torch.stack([v, 2 * v])), torch.stack([expected @ v, 2 * expected @ v]))
    assert "kept" not in repr(A)


def test_one_process_without_a_group_is_enough() -> None:
    net = cases.model()
    torch.testing.assert_close(
        hesse.dense(hesse.loss_hessian(net, cases.KNOWN, spread(cases.batches()))),
        cases.full_hessian(net, cases.KNOWN, cases.whole()), rtol=1e-10, atol=1e-12,
    )  # fmt: skip
