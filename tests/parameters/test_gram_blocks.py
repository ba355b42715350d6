"""Gram matrices of data sets in blocks: plans, captures, buffers, parts of a plan; against a plain loop over samples."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hesse
from hesse.core.errors import DataError, MemoryBudgetError, StructureError
from hesse.parameters import DataJacobian, GramPlan, ParameterJacobian
from hesse.parameters.gram_plan import tiles_of
from tests.parameters import oracle

LOSS = nn.CrossEntropyLoss()


def case(count: int = 23, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = [nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3)]
        model = nn.Sequential(*layers).double()
        torch.manual_seed(seed)
        return model, torch.randn(count, 2, 5, dtype=torch.float64), torch.randint(0, 3, (count,))


def rows_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return oracle.loss_rows(model, nn.CrossEntropyLoss(reduction="sum"), x, y)


def jacobian(model: nn.Module, x: Tensor, y: Tensor, sizes: tuple[int, ...], **options: Any) -> DataJacobian:
    J = hesse.parameter_jacobian(model, LOSS, list(zip(x.split(sizes), y.split(sizes), strict=True)), **options)
    assert isinstance(J, DataJacobian)
    return J


def draw(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randint(1, 7) for _ in range(rng.randint(1, 6)))


@pytest.mark.parametrize("seed", range(30))
def test_the_tasks_of_a_plan_cover_the_matrix_once(seed: int) -> None:
    rng = random.Random(seed)
    sizes, others = draw(rng), draw(rng) if seed % 2 else None
    plan = GramPlan(sizes, others, rng.randint(1, 9), rng.randint(1, 4))
    seen = np.zeros((sum(sizes), sum(sizes if others is None else others)), dtype=int)
    for rows, columns in plan.tasks:
        seen[rows, columns] += 1
        if others is None and rows != columns:
            assert columns.stop <= rows.start
            seen[columns, rows] += 1
    assert (seen == 1).all()
    assert all(tile.stop - tile.start <= plan.tile for tile in tiles_of(sizes, plan.tile))
    assert plan.tasks == GramPlan(sizes, others, plan.tile, plan.held).tasks


@pytest.mark.parametrize("seed", range(30))
def test_a_schedule_has_every_tile_at_hand_and_holds_no_more_than_said(seed: int) -> None:
    rng = random.Random(seed)
    sizes, others = draw(rng), draw(rng) if seed % 2 else None
    plan = GramPlan(sizes, others, rng.randint(1, 9), rng.randint(1, 4))
    tasks = [task for task in plan.tasks if rng.random() < 0.7]
    rng.shuffle(tasks)
    here: set[Any] = set()
    for step, task in zip(plan.schedule(tasks), tasks, strict=True):
        assert step.task == task
        here -= set(step.before)
        assert not here & set(step.fetch)
        here |= set(step.fetch)
        assert set(step.keys) <= here and len(here) <= plan.held + 1
        here -= set(step.after)
    assert not here


def test_captures_are_few() -> None:
    sizes = (10,) * 12
    assert GramPlan(sizes, None, 10, 12).captures == 120
    assert 120 < GramPlan(sizes, None, 10, 4).captures <= 120 + 80 + 40
    assert 240 < GramPlan(sizes, sizes, 10, 4).captures <= 120 + 3 * 120
    assert GramPlan(sizes, None, 40, 2).captures == 120
    with pytest.raises(StructureError, match="tile"):
        GramPlan(sizes, None, 0, 1)
    with pytest.raises(StructureError, match="captured"):
        GramPlan(sizes, None, 2, 1, 0)


@pytest.mark.parametrize(("tile", "held", "captured"), [(2, 1, None), (4, 2, 3), (9, 1, 2), (100, 3, None), (100, 3, 5)])
@pytest.mark.parametrize("direct", [True, False])
def test_every_plan_gives_the_matrix(tile: int, held: int, captured: int | None, direct: bool) -> None:
    model, x, y = case()
    expected = rows_of(model, x, y) @ rows_of(model, x, y).T
    J = jacobian(model, x, y, (4, 7, 1, 1, 10)) if direct else _loaded(model, x, y)
    found = torch.full_like(expected, torch.nan)
    for block in J.gram_blocks(plan=GramPlan(J.sizes, None, tile, held, captured)):
        found[block.rows, block.columns] = block.values
        found[block.columns, block.rows] = block.values.T
    assert oracle.difference(found, expected) < 1e-12


def _loaded(model: nn.Module, x: Tensor, y: Tensor) -> DataJacobian:
    J = hesse.parameter_jacobian(model, LOSS, DataLoader(TensorDataset(x, y), batch_size=6))
    assert isinstance(J, DataJacobian)
    return J


def test_two_data_sets_and_a_batch() -> None:
    model, x, y = case()
    _, z, w = case(9, 1)
    rows, others = rows_of(model, x, y), rows_of(model, z, w)
    J, K = jacobian(model, x, y, (4, 9, 10)), jacobian(model, z, w, (5, 4))
    batch = hesse.parameter_jacobian(model, LOSS, (z, w))
    assert oracle.difference(J.gram(K), rows @ others.T) < 1e-12
    assert oracle.difference(J.gram(batch), rows @ others.T) < 1e-12
    assert oracle.difference(batch.gram(J), others @ rows.T) < 1e-12
    blocks = list(J.gram_blocks(K, plan=GramPlan(J.sizes, K.sizes, 4, 1)))
    assert len(blocks) == 7 * 3
    for block in blocks:
        assert oracle.difference(block.values, rows[block.rows] @ others[block.columns].T) < 1e-12
    with pytest.raises(StructureError, match="same parameters"):
        J.gram(K.select(params=["5.bias"]))
    with pytest.raises(StructureError, match="A plan"):
        next(J.gram_blocks(plan=GramPlan((1, 2), None, 4, 1)))


def test_a_block_is_the_same_to_the_bit_whichever_tasks_run_with_it() -> None:
    model, x, y = case()
    J = jacobian(model, x, y, (4, 7, 1, 1, 10))
    plan = GramPlan(J.sizes, None, 5, 2, 3)
    every = {(block.rows.start, block.columns.start): block.values for block in J.gram_blocks(plan=plan)}
    for tasks in (plan.tasks[1::3], plan.tasks[::-1][:7]):
        again = list(J.gram_blocks(plan=plan, tasks=tasks))
        assert [(block.rows, block.columns) for block in again] == list(tasks)
        assert all(torch.equal(every[block.rows.start, block.columns.start], block.values) for block in again)


def test_out_may_be_a_file(tmp_path: Path) -> None:
    model, x, y = case()
    expected = rows_of(model, x, y) @ rows_of(model, x, y).T
    J = jacobian(model, x, y, (8, 15), memory=2**21)
    file = np.lib.format.open_memmap(tmp_path / "gram.npy", mode="w+", dtype=np.float32, shape=(23, 23))
    assert J.gram(out=file) is file
    file.flush()
    assert np.allclose(np.load(tmp_path / "gram.npy"), expected.numpy(), rtol=1e-5, atol=1e-6)
    buffer = torch.zeros(23, 23, dtype=torch.float64)
    assert J.gram(out=buffer) is buffer and oracle.difference(buffer, expected) < 1e-12
    batch = hesse.parameter_jacobian(model, LOSS, (x, y))
    assert oracle.difference(batch.gram(out=torch.zeros_like(buffer)), expected) < 1e-12
    with pytest.raises(StructureError, match="shape"):
        J.gram(out=buffer[:5])
    with pytest.raises(StructureError, match="cut off digits"):
        J.gram(out=torch.zeros(23, 23, dtype=torch.int64))
    with pytest.raises(StructureError, match="a read-only array"):  # to write to one of a file would end the process
        J.gram(out=np.load(tmp_path / "gram.npy", mmap_mode="r"))
    with pytest.raises(StructureError, match="share memory"):
        J.gram(out=torch.zeros(1, dtype=torch.float64).expand(23, 23))
    with pytest.raises(StructureError, match="a list"):
        J.gram(out=[[0.0]])
    for array in (np.zeros((23, 23))[::-1], np.zeros((23, 23), ">f4")):
        for one in (J, batch):
            with pytest.raises(StructureError, match=r"gram\(out=\)(?s:.*)an array that is no tensor"):
                one.gram(out=array)


def test_the_whole_is_put_together_from_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hesse.parameters.gram_budget._MOST_SAMPLES", 4)
    model, x, y = case(9)
    J = jacobian(model, x, y, (3, 2, 4))
    assert len(J.gram_plan().tasks) == 6
    assert oracle.difference(J.gram(), rows_of(model, x, y) @ rows_of(model, x, y).T) < 1e-12
    rows = oracle.output_rows(model, x, 9)
    kernel = hesse.ntk(model, [(x[:3], None), (x[3:5], None), (x[5:], None)])
    assert oracle.difference(kernel.tensor(), torch.einsum("ncd,mkd->ncmk", rows, rows)) < 1e-12
    across = hesse.ntk(model, [(x[:3], None), (x[3:5], None), (x[5:], None)], x[:5])
    assert oracle.difference(across.tensor(), torch.einsum("ncd,mkd->ncmk", rows, rows[:5])) < 1e-12


def test_a_result_larger_than_the_budget_is_refused() -> None:
    model, x, y = case(400)
    J = jacobian(model, x, y, (200, 200), memory=100_000)
    with pytest.raises(MemoryBudgetError, match="400 x 400") as caught:
        J.gram()
    assert caught.value.least == 400 * 400 * 8


def test_batches_that_cannot_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten(), nn.Linear(4, 2)).double()
        data = [(torch.randn(n, t, 3, dtype=torch.float64), torch.randint(0, 2, (n,))) for n, t in ((4, 2), (3, 5), (2, 5))]
    rows = torch.cat([rows_of(model, x, y) for x, y in data])
    J = hesse.parameter_jacobian(model, LOSS, data)
    assert oracle.difference(J.gram(), rows @ rows.T) < 1e-12
    pairs: list[Any] = []
    inner = ParameterJacobian.inner
    monkeypatch.setattr(ParameterJacobian, "inner", lambda J, other=None: (pairs.append(other), inner(J, other))[1])
    found = J.gram()
    assert len(pairs) == 6, "of three parts: each with itself, and each pair once"
    for first, second in itertools.combinations([slice(0, 4), slice(4, 7), slice(7, 9)], 2):
        assert torch.equal(found[first, second], found[second, first].T)
    outputs = hesse.parameter_jacobian(model, None, data)
    several = torch.cat([oracle.output_rows(model, x, len(x)) for x, _ in data])
    assert oracle.difference(outputs.gram(), torch.einsum("ncd,mkd->ncmk", several, several)) < 1e-12


@pytest.mark.parametrize("direct", [True, False])
def test_data_that_go_on_after_the_last_batch_are_refused(direct: bool) -> None:
    model, x, y = case()
    data = list(zip(x.split(9), y.split(9), strict=True))
    source: Any = data if direct else Passes(data)
    J = hesse.parameter_jacobian(model, LOSS, source)
    rows = rows_of(model, x, y)
    tight = GramPlan(J.sizes, None, 5, 2)
    for plan in (J.gram_plan(), tight):
        for block in J.gram_blocks(plan=plan):
            assert oracle.difference(block.values, rows[block.rows] @ rows[block.columns].T) < 1e-12
    data.append(data[0])
    for plan in (J.gram_plan(), tight):
        with pytest.raises(DataError, match="batch 3"):
            list(J.gram_blocks(plan=plan))


class Passes:
    """A data set that can only be gone through."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def test_the_budget_decides_the_plan() -> None:
    model, x, y = case(300)
    J = jacobian(model, x, y, (100, 100, 100), memory="1GiB")
    assert J.gram_plan().captures == 300
    small = jacobian(model, x, y, (100, 100, 100), memory=300 * J.bytes_per_sample)
    plan = small.gram_plan()
    assert plan.tile < 100 and plan.tile * (plan.held + 3) <= 300 and plan.captures > 300


def test_progress_is_told() -> None:
    model, x, y = case()
    J = jacobian(model, x, y, (4, 7, 1, 1, 10))
    tasks: list[tuple[str, int | None]] = []

    class Sink:
        def start(self, label: str, total: int | None) -> int:
            tasks.append((label, total))
            return 0

        def advance(self, handle: int, steps: int) -> None: ...

        def finish(self, handle: int) -> None: ...

    plan = GramPlan(J.sizes, None, 4, 2)
    with pytest.MonkeyPatch.context() as patch, hesse.progress(Sink()):
        patch.setattr("hesse.core.progress._PATIENCE_SECONDS", -1.0)
        list(J.gram_blocks(plan=plan))
    assert ("Gram matrix", len(plan.tasks)) in tasks
