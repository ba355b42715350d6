"""Gram matrices over ranks against rows from loops of torch.autograd."""

from __future__ import annotations

import os
import random
import re
import signal
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.core.errors import DataError, DistributedError, HesseError, MemoryBudgetError, StructureError
from hesse.distributed.gram_matrix import gather_batches, gram, gram_blocks
from hesse.distributed.gram_shares import even_runs
from hesse.parameters.gram_plan import GramPlan, Task

from .oracles import gradients
from .ranks import run_ranks, try_ranks

ALL = os.environ.get("HESSE_TEST_ALL", "") not in ("", "0")


def model_of(seed: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3)).double()


def batches_of(seed: int, sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(n, 2, 4, dtype=torch.float64, generator=generator) for n in sizes]
    return [(x, torch.randint(3, (len(x),), generator=generator)) for x in inputs]


def rows_of(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([gradients(model_of(), F.cross_entropy, x, t) for x, t in batches])


def kernel_rows(batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """``[N, C, D]``."""
    model = model_of()
    found = []
    for x, _ in batches:
        for n in range(len(x)):
            y = model(x[n : n + 1])[0]
            rows = [torch.autograd.grad(entry, list(model.parameters()), retain_graph=True) for entry in y]
            found.append(torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows]))
    return torch.stack(found)


def everything(rank: int, ranks: int) -> int:
    model, left, right = model_of(), batches_of(0, (4, 1, 5)), batches_of(1, (3, 3))
    J, K = (hesse.parameter_jacobian(model, F.cross_entropy, data) for data in (left, right))
    rows, others = rows_of(left), rows_of(right)
    torch.testing.assert_close(gram(J), rows @ rows.T)
    torch.testing.assert_close(gram(J, K), rows @ others.T)
    one = hesse.parameter_jacobian(model, F.cross_entropy, left[0])
    torch.testing.assert_close(gram(one), rows[:4] @ rows[:4].T)
    outputs = hesse.parameter_jacobian(model, None, left)
    wide = kernel_rows(left)
    torch.testing.assert_close(gram(outputs), torch.einsum("ncd,med->ncme", wide, wide))
    array = np.zeros((10, 6), dtype=np.float32)
    assert gram(J, K, out=array, to=None) is array
    torch.testing.assert_close(torch.from_numpy(array), (rows @ others.T).float())
    last = gram(J, to=ranks - 1)
    assert (last is None) == (rank != ranks - 1)
    mine = torch.zeros(10, 10, dtype=torch.float64)
    count = 0
    for block in gram_blocks(J):
        assert not mine[block.rows, block.columns].any()
        mine[block.rows, block.columns] = block.values
        count += 1
    torch.distributed.all_reduce(mine)
    torch.testing.assert_close(mine.tril(), (rows @ rows.T).tril())
    return count


def shards(rank: int, ranks: int) -> None:
    sizes: list[tuple[int, ...]] = [(2, 3), (), (1,), (4, 1)]
    mine = batches_of(rank, sizes[rank])
    found = gather_batches(iter(mine))
    wanted = [batch for other in range(ranks) for batch in batches_of(other, sizes[other])]
    assert len(found) == len(wanted)
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(found, wanted, strict=True))
    rows = rows_of(wanted)
    torch.testing.assert_close(gram(hesse.parameter_jacobian(model_of(), F.cross_entropy, found)), rows @ rows.T)
    with pytest.raises(DataError, match="no batch on any process"):
        gather_batches([])


def mismatches(rank: int) -> list[str]:
    """What each rank is told where the ranks do not agree."""
    found = []

    def note(make: Any, **options: Any) -> None:
        with pytest.raises(HesseError) as caught:
            gram(make(), **options)
        found.append(f"{type(caught.value).__name__}: {caught.value}")

    data = batches_of(0, (4, 2))
    shuffled = data[::-1]
    jacobian = hesse.parameter_jacobian
    note(lambda: jacobian(model_of(), F.cross_entropy, data if rank else shuffled))
    note(lambda: jacobian(model_of(2 + rank), F.cross_entropy, data))
    J = jacobian(model_of(), F.cross_entropy, data)
    note(lambda: jacobian(model_of(), nn.CrossEntropyLoss(label_smoothing=0.1 * rank), data))
    note(lambda: J, to=2)
    note(lambda: J, to=rank)
    note(lambda: J, out=torch.zeros(6, 5 + rank))
    note(lambda: jacobian(model_of(), F.cross_entropy, batches_of(0, (30, 20)), memory=10_000 if rank else 2**24))
    return found


class Failing:
    """Data of which a later pass fails on one rank."""

    def __init__(self, fails: bool) -> None:
        self.batches, self.fails, self.passes = batches_of(0, (4, 2)), fails, 0

    def __iter__(self) -> Any:
        self.passes += 1
        if self.fails and self.passes > 1:
            raise OSError("the disk is gone")
        return iter(self.batches)


def disk_fails(rank: int) -> None:
    gram(hesse.parameter_jacobian(model_of(), F.cross_entropy, Failing(rank == 1)))


def dies(rank: int) -> None:
    J = hesse.parameter_jacobian(model_of(), F.cross_entropy, batches_of(0, (4, 2)))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gram(J, timeout=60)


@pytest.mark.parametrize("ranks", [2, *([3, 4] if ALL else [])])
def test_blocks_of_all_ranks_are_the_matrix(ranks: int) -> None:
    counts = run_ranks(everything, ranks, ranks)
    assert min(counts) > 0 and max(counts) <= 2 * min(counts)


@pytest.mark.parametrize("ranks", [2, *([3, 4] if ALL else [])])
def test_shards_are_gathered_in_the_order_of_ranks(ranks: int) -> None:
    run_ranks(shards, ranks, ranks)


def test_what_ranks_do_not_agree_on_is_refused_on_all() -> None:
    first, second = run_ranks(mismatches, 2)
    for place, (mine, theirs) in enumerate(
        [
            ("DistributedError(?s:.*)rank 1 differs from rank 0 at 'rows of the data'", None),
            ("DistributedError(?s:.*)rank 1 differs from rank 0 at 'the parameter 0.weight'", None),
            ("DistributedError(?s:.*)rank 1 differs from rank 0 at 'loss'", None),
            ("StructureError(?s:.*)to=2 of 2 processes", None),
            ("DistributedError(?s:.*)the same things in the same order", None),
            (r"StructureError(?s:.*)\(6, 5\) instead of \(6, 6\)", "DistributedError"),
        ]
    ):
        assert re.search(mine, first[place]), first[place]
        if theirs is None:
            assert re.search(mine, second[place]), second[place]
    assert "DistributedError" in first[-1] and "MemoryBudgetError" in second[-1]


def test_an_error_on_one_rank_is_told_to_the_other() -> None:
    outcomes = try_ranks(disk_fails, 2)
    assert [type(outcome.error) for outcome in outcomes] == [DistributedError, OSError]
    assert "rank 1: OSError: the disk is gone" in str(outcomes[0].error)


@pytest.mark.skipif(not ALL, reason="a death costs two new processes: HESSE_TEST_ALL=1 runs it")
def test_a_death_is_told_to_the_other() -> None:
    first, second = try_ranks(dies, 2)
    assert second.kind == "died" and isinstance(first.error, DistributedError)


def test_without_processes_it_is_the_jacobians_own() -> None:
    data = batches_of(0, (4, 2))
    J = hesse.parameter_jacobian(model_of(), F.cross_entropy, data)
    rows = rows_of(data)
    torch.testing.assert_close(gram(J), rows @ rows.T)
    assert len(gather_batches(data)) == 2
    with pytest.raises(MemoryBudgetError):
        gram(hesse.parameter_jacobian(model_of(), F.cross_entropy, batches_of(0, (60, 60)), memory=100_000))
    with pytest.raises(StructureError, match="same parameters"):
        gram(J, hesse.parameter_jacobian(model_of(), F.cross_entropy, data, params=["3.bias"]))


def test_runs_are_even_and_complete(sweep_rng: random.Random) -> None:
    for _ in range(200 if ALL else 20):
        sizes = tuple(sweep_rng.randrange(1, 9) for _ in range(sweep_rng.randrange(1, 30)))
        plan = GramPlan(sizes, None, tile=sweep_rng.randrange(1, 6), held=sweep_rng.randrange(1, 9))
        ranks = sweep_rng.randrange(1, 9)
        costs = [_cost(task) for task in plan.tasks]
        runs = even_runs(plan.tasks, costs, ranks)
        assert [task for run in runs for task in run] == list(plan.tasks)
        assert all(abs(sum(map(_cost, run)) - sum(costs) / ranks) <= max(costs) for run in runs)


def _cost(task: Task) -> int:
    return (task.rows.stop - task.rows.start) * (task.columns.stop - task.columns.start)
