"""What one rank alone refuses: its own error there, a typed one on the others, and the next question is answered on all."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.core.errors import DataError, DistributedError, StructureError
from hesse.distributed import count_traffic, deal, gather_batches, gram, gram_blocks, spread, write_gram, write_rows
from hesse.distributed.link import Link

from . import cases
from .ranks import run_ranks
from .test_gram import batches_of, model_of

Told = tuple[str, str]
Asks = dict[str, Callable[[], Any]]
WAIT = 60.0
RANKS = [2] if os.environ.get("HESSE_TEST_ALL", "") in ("", "0") else [2, 3, 4]


def told_by(ask: Callable[[], Any]) -> Told:
    try:
        ask()
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def with_nan() -> nn.Module:
    net = cases.model()
    with torch.no_grad():
        net[2].bias[1] = math.nan  # type: ignore[index]
    return net


def with_statistics(training: bool) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double().train(training)


def empty_batch(data: list[cases.Batch]) -> list[Any]:
    return [(x[:0], t[:0]) for x, t in data]


def operators(sick: bool, mine: list[cases.Batch]) -> Asks:
    """Questions about curvature, bad on one rank."""
    loss = cases.KNOWN
    net, data = with_nan() if sick else cases.model(), spread(mine, timeout=WAIT)
    bad = spread(empty_batch(mine) if sick else mine, timeout=WAIT)
    normed = with_statistics(sick)

    def product(A: Any) -> Any:
        return A @ ({"none": torch.ones(3)} if sick else A.in_space.normal())

    def damped(A: Any) -> Any:
        return A + 2 * hesse.identity(A.in_space)

    right = torch.ones(44 + sick, dtype=torch.float64)
    asks: Asks = {
        f"nan {make.__name__}": lambda make=make: make(net, loss, data)
        for make in (hesse.loss_hessian, hesse.ggn, hesse.fisher, hesse.kfac, hesse.ekfac)
    }
    asks |= {
        "statistics": lambda: hesse.ggn(normed, loss, data),
        "empty batch": lambda: hesse.loss_hessian(cases.model(), loss, bad),
        "empty batch, kfac": lambda: hesse.kfac(cases.model(), loss, bad),
        "kind": lambda: hesse.fisher(cases.model(), loss, data, kind="all" if sick else "expected"),  # type: ignore[arg-type]
        "params": lambda: hesse.ekfac(cases.model(), loss, data, params=["none"] if sick else None),
        "linear loss": lambda: hesse.ggn(cases.model(), nn.L1Loss() if sick else loss, data),
        "budget": lambda: hesse.ggn(cases.model(), loss, data, memory="no size" if sick else None),
        "product": lambda: hesse.ggn(cases.model(), loss, data).flat @ torch.ones(44 + sick, dtype=torch.float64),
        "product of trees": lambda: product(hesse.ggn(cases.model(), loss, data)),
        "average": lambda: hesse.average(lambda b: hesse.ggn(cases.model(), loss, b), data, memory=-1 if sick else None),
        "product of a sum": lambda: damped(hesse.ggn(cases.model(), loss, data)).flat @ right,
        "product of a part": lambda: product(hesse.restrict(hesse.ggn(cases.model(), loss, data), ["0.weight", "0.bias"])),
    }
    asks |= {
        f"solve, {method}": lambda method=method: hesse.solve(
            damped(hesse.ggn(cases.model(), loss, data)), {"none": right} if sick else cases.vector(), method=method
        )
        for method in ("auto", "cg", "lsmr")
    }
    return asks | questions(sick, hesse.ggn(cases.model(), loss, data))


class Through(hesse.LinearOperator):
    """An operator of the user's own that is made of another one."""

    def __init__(self, A: Any) -> None:
        self.A, self.in_space, self.out_space, self.tags = A, A.in_space, A.out_space, A.tags

    def mv(self, v: Any) -> Any:
        return self.A @ v

    def transpose(self) -> hesse.LinearOperator:
        return Through(self.A.T)


def questions(sick: bool, A: Any) -> Asks:
    """Questions of linear algebra, an option bad on one rank."""
    one: Any = hesse.identity(A.in_space)
    here = hesse.ggn(cases.model(), cases.KNOWN, cases.batches())
    return {
        "solve, method": lambda: hesse.solve(A + one, cases.vector(), method="none" if sick else "cg"),
        "lstsq": lambda: hesse.lstsq(A, torch.ones(3) if sick else cases.vector()),
        "solve, preconditioner": lambda: hesse.solve(
            here + one, {"none": torch.ones(3)} if sick else cases.vector(), method="cg", preconditioner=Through(A + one)
        ),
        "trace": lambda: hesse.trace(A, rtol=-1.0 if sick else 0.1),
        "trace of a sum": lambda: hesse.trace(A + one, method="none" if sick else "auto"),
        "norm": lambda: hesse.norm(A, ord="none" if sick else "fro"),  # type: ignore[arg-type]
        "eigsh": lambda: hesse.eigsh(A, 0 if sick else 2),
        "svd": lambda: hesse.svd(A, 0 if sick else 2),
        "diagonal": lambda: hesse.diagonal(0.5 * A, method="none" if sick else "auto"),  # type: ignore[call-overload]
        "spectrum": lambda: hesse.spectrum(A, method="none" if sick else "auto"),
        "logdet": lambda: hesse.logdet(A + one, method="none" if sick else "auto"),
        "jacobi": lambda: hesse.jacobi(A, damping=1.0, rtol=-1.0 if sick else None),
        "dense": lambda: hesse.dense(A.T @ A, memory="none" if sick else None),
    }


def collections(sick: bool, mine: list[cases.Batch], folder: str) -> Asks:
    """Functions of `hesse.distributed`, bad on one rank."""
    J = hesse.parameter_jacobian(model_of(), F.cross_entropy, batches_of(0, (4, 2)))
    bad = None if sick else J
    nothing: Any = None if sick else mine
    loss = cases.KNOWN
    return {
        "spread, timeout": lambda: hesse.kfac(cases.model(), loss, spread(mine, timeout=math.inf if sick else WAIT)),
        "spread": lambda: hesse.ggn(cases.model(), loss, spread(nothing, timeout=WAIT)),
        "spread, one-shot": lambda: hesse.ggn(cases.model(), loss, spread(iter(mine) if sick else mine, timeout=WAIT)),
        "deal": lambda: deal(None if sick else cases.batches(), timeout=WAIT),  # type: ignore[arg-type]
        "gather_batches": lambda: gather_batches(nothing, timeout=WAIT),
        "gram": lambda: gram(bad, timeout=WAIT),  # type: ignore[arg-type]
        "gram, to": lambda: gram(J, to="0" if sick else 0, timeout=WAIT),  # type: ignore[arg-type]
        "gram_blocks": lambda: list(gram_blocks(bad, timeout=WAIT)),  # type: ignore[arg-type]
        "write_rows": lambda: write_rows(J, f"{folder}/a", mode="new" if sick else "create", timeout=WAIT),  # type: ignore[arg-type]
        "write_rows, no Jacobian": lambda: write_rows("J" if sick else J, f"{folder}/b", timeout=WAIT),  # type: ignore[arg-type]
        "write_gram": lambda: write_gram(bad, f"{folder}/c", timeout=WAIT),  # type: ignore[arg-type]
        "write_gram, path": lambda: write_gram(J, f"{folder}/d{int(sick)}", timeout=WAIT),
    }


def one_refuses(rank: int, ranks: int, folder: str) -> dict[str, tuple[Told, float]]:
    """Each question bad on the last rank, and a good one after it."""
    sick, mine = rank == ranks - 1, cases.part(rank, ranks)
    G = hesse.ggn(cases.model(), cases.KNOWN, spread(mine, timeout=WAIT))
    v = torch.ones(44, dtype=torch.float64)
    found = {}
    for name, ask in {**operators(sick, mine), **collections(sick, mine, folder)}.items():
        found[name] = told_by(ask), float((G.flat @ v).norm())
    return found


@pytest.mark.parametrize("ranks", RANKS)
def test_a_refusal_on_one_rank_reaches_the_others_and_the_next_question_works(tmp_path: Path, ranks: int) -> None:
    *others, last = run_ranks(one_refuses, ranks, ranks, str(tmp_path))
    expected = float((cases.full_ggn(cases.model(), cases.whole()) @ torch.ones(44, dtype=torch.float64)).norm())
    for name, (own, value) in last.items():
        assert own[0] not in ("nothing", "AttributeError", "TypeError"), (name, own)
        for found in others:
            (kind, text), norm = found[name]
            assert kind == DistributedError.__name__, (name, kind, text)
            if name != "write_gram, path":  # refused on all, since the paths differ
                assert own[0] != kind and f"rank {ranks - 1}: {own[0]}" in text, (name, own, text)
            assert "within" not in text  # nobody waited for the timeout
            assert norm == value == pytest.approx(expected), name


def late(rank: int) -> list[Told]:
    """A failure after the last exchange of a question: the others have its result, and ask the next one."""
    link, found = Link(None, WAIT), []
    for place in range(3):

        def question(place: int = place) -> list[int]:
            with link.asking("a question"):
                values = link.exchange("first", lambda: rank)
                if rank and place == 1:
                    raise OSError("the disk is gone")
            return values

        found.append(told_by(question))
        found.append(told_by(lambda: link.exchange("second", lambda: 2)))
    assert link.exchange("third", lambda: rank) == list(range(link.ranks))
    return found


@pytest.mark.parametrize("ranks", RANKS)
def test_a_failure_after_the_last_exchange_leaves_the_others_in_step(ranks: int) -> None:
    zero, *others = run_ranks(late, ranks)
    assert [kind for kind, _ in zero] == ["nothing"] * 6
    for found in others:
        assert [kind for kind, _ in found] == ["nothing", "nothing", "OSError", "nothing", "nothing", "nothing"]


class Wordy(nn.Module):
    """A model whose error is long."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("a line of an error\n" * 1000)


def several(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    wordy = spread(cases.part(rank, 2), timeout=WAIT)
    make = Wordy() if rank else nn.Identity()
    weight = torch.ones(3, dtype=torch.float64)
    found["wordy"] = told_by(lambda: hesse.average(
        lambda batch: hesse.ggn((lambda p, x: make(x) @ p, weight), nn.MSELoss(), (batch[0], batch[0][:, 0])), wordy
    ))  # fmt: skip
    flips = torch.linalg.eigh

    def other_machine(side: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = flips(side)
        return values, -vectors * (1 + 1e-15)

    if rank:
        torch.linalg.eigh = other_machine  # type: ignore[assignment]
    try:
        with count_traffic() as traffic:
            K = hesse.ekfac(cases.model(), cases.KNOWN, spread(cases.part(rank, 2), timeout=WAIT), kind="empirical")
    finally:
        torch.linalg.eigh = flips
    found["ekfac"], found["traffic"] = hesse.dense(K), dict(traffic.by_name)
    some = dist.new_group([0, 1])
    G = hesse.ggn(cases.model(), cases.KNOWN, spread(cases.part(rank, 2), group=some, timeout=WAIT))
    data = spread(cases.part(rank, 2), group=some, timeout=WAIT)
    dist.destroy_process_group(some)
    v = torch.ones(44, dtype=torch.float64)
    asks = (lambda: G.flat @ v, lambda: hesse.kfac(cases.model(), cases.KNOWN, data), lambda: spread([], group=some))
    found["destroyed"] = [told_by(ask) for ask in asks]
    only = dist.new_group([0])
    found["outside"] = told_by(lambda: spread([], group=only)) if rank else ("", "")
    return found


def test_long_errors_other_machines_and_groups_that_are_gone() -> None:
    zero, one = run_ranks(several, 2)
    assert one["wordy"][0] == "ValueError" and len(one["wordy"][1]) > 10_000
    kind, text = zero["wordy"]
    assert kind == DistributedError.__name__ and "rank 1: ValueError: a line of an error" in text and len(text) < 800
    alone = hesse.dense(hesse.ekfac(cases.model(), cases.KNOWN, cases.batches(), kind="empirical"))
    torch.testing.assert_close(zero["ekfac"], alone, rtol=1e-10, atol=1e-12)
    assert torch.equal(zero["ekfac"], one["ekfac"])
    sent = [entry for name, entry in zero["traffic"].items() if name.startswith("The eigenvectors") and "[" in name]
    assert sent == [(1, 8 * (4 * 2 + 1024))]  # 5 x 5, 3 x 3, 4 x 4 and 5 x 5 numbers travel with the header
    for found in (zero, one):
        assert all(kind == DistributedError.__name__ and "destroyed" in text for kind, text in found["destroyed"])
        assert "init_process_group" in found["destroyed"][0][1]
    assert one["outside"][0] == DistributedError.__name__ and "leave this process out" in one["outside"][1]


def test_groups_come_and_go() -> None:
    before = hesse.ggn(cases.model(), cases.KNOWN, spread(cases.batches()))
    v = torch.ones(44, dtype=torch.float64)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        within = hesse.ggn(cases.model(), cases.KNOWN, spread(cases.batches()))
        assert torch.equal(within.flat @ v, before.flat @ v)  # a group of one has nobody to be told
    finally:
        dist.destroy_process_group()
    gc.collect()
    assert within.link._wire.group is None  # kept alive, it may abort the process as it exits  # type: ignore[attr-defined]
    for again in (False, True):
        if again:  # another group is not the one that the data were spread over
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            with pytest.raises(DistributedError, match=r"destroyed(?s:.*)spread the data anew"):
                within.flat @ v
        finally:
            if again:
                dist.destroy_process_group()


def test_data_spread_before_there_was_a_group_are_refused_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    G = hesse.ggn(cases.model(), cases.KNOWN, spread(cases.batches()))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(DistributedError, match="before the group of 2 processes was made"):
        _ = G.flat @ torch.ones(44, dtype=torch.float64)


def test_what_is_no_data_or_no_group_is_refused() -> None:
    data = spread(cases.batches())
    asks: list[tuple[Callable[[], Any], str]] = [
        (lambda: spread(None), "a NoneType"), (lambda: spread(3), "a int"), (lambda: spread(torch.ones(3)), "a Tensor"),
        (lambda: spread("data"), "a str"), (lambda: spread(data), "spread already"), (lambda: deal(3), "a int"),
        (lambda: gather_batches(3), "a int"), (lambda: list(data), "this process only"), (lambda: len(data), "their length"),
        (lambda: data[0], "the batch at 0"), (lambda: spread([], group=3), "a int: 3"),
        (lambda: spread([], group="0"), "a str"), (lambda: gram(cases.model()), "a Sequential"),
        (lambda: write_gram(None, "x"), "a NoneType"),
        (lambda: write_rows(None, 3), "a int"),
    ]  # type: ignore[arg-type] # fmt: skip
    for ask, found in asks:
        with pytest.raises((DataError, DistributedError, StructureError), match=found):
            ask()
    assert data and list(data.batches)
