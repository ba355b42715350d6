"""Memory budgets of Jacobians: what is split, which tiles are taken, and what is done where an allocation fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.core.chunk_store_layout import ArrayLayout
from hesse.core.errors import MemoryBudgetError
from hesse.core.growth import Growth
from hesse.parameters import DataJacobian, GramPlan, appetite, gram_budget
from hesse.parameters.appetite import Appetite, measured
from hesse.parameters.storing.budget import waiting_bytes
from tests.parameters import oracle

MIB = 2**20
CPU = torch.device("cpu")
LOSS = nn.CrossEntropyLoss()


def case(count: int, width: int = 9) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(width, 14), nn.Tanh(), nn.Linear(14, 3)).double()
        return model, torch.randn(count, width, dtype=torch.float64), torch.randint(0, 3, (count,))


def rows_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return oracle.loss_rows(model, nn.CrossEntropyLoss(reduction="sum"), x, y)


def simulated(monkeypatch: pytest.MonkeyPatch, needs: Callable[[int], float]) -> list[int]:
    """A machine on which work on so many samples takes so many MiB; the counts that are tried."""
    tried: list[int] = []

    def highest(work: Any, count: int, *_: Any) -> int:
        tried.append(count)
        return int(needs(count) * MIB)

    monkeypatch.setattr(appetite, "_highest", highest)
    return tried


@pytest.mark.parametrize(("fixed", "each"), [(0, 2), (30, 1), (5, 0.25)])
def test_an_appetite_is_a_line_through_what_was_measured(monkeypatch: pytest.MonkeyPatch, fixed: float, each: float) -> None:
    tried = simulated(monkeypatch, lambda count: fixed + each * count)
    found = measured(lambda count: None, 1000, 200 * MIB, CPU, "it")
    assert tried[:2] == [2, 2] and all(fixed + each * count <= 0.65 * 200 for count in tried)
    for count in (10, 100, 700):
        assert found.of(count) == pytest.approx((fixed + each * count) * MIB, rel=0.1) or found.of(count) > fixed + each * count
    assert found.fits((fixed + 50 * each) * MIB) <= 50


def test_what_is_hardly_measured_counts_by_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(monkeypatch, lambda count: 0.5)
    found = measured(lambda count: None, 32, 200 * MIB, CPU, "it")
    assert found.of(3200) >= 49 * MIB


def test_two_samples_that_do_not_fit_say_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(monkeypatch, lambda count: 30 * count)
    with pytest.raises(MemoryBudgetError, match="two samples") as caught:
        measured(lambda count: None, 8, 40 * MIB, CPU, "it", taken=5 * MIB)
    found = measured(lambda count: None, 8, caught.value.least, CPU, "it", taken=5 * MIB)
    assert 60 * MIB <= found.of(2) <= caught.value.least - 5 * MIB
    assert Appetite(0.0, 1.0, least=50).fits(49) == 0


def failing_above(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Captures of more samples than `most` fail as an allocation does; the sizes of all captures."""
    sizes: list[int] = []
    tiles = DataJacobian.tiles

    def limited(J: DataJacobian) -> Any:
        fetch = tiles(J)

        def tile(part: slice) -> Any:
            sizes.append(part.stop - part.start)
            if sizes[-1] > most:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
            return fetch(part)

        return tile

    monkeypatch.setattr(DataJacobian, "tiles", limited)
    return sizes


@pytest.mark.parametrize(("most", "outputs"), [(1, True), (2, False), (4, False)])
def test_tiles_are_halved_where_memory_fails(monkeypatch: pytest.MonkeyPatch, most: int, outputs: bool) -> None:
    model, x, y = case(9)
    _, z, w = case(5)
    first, second = [(x[:6], y[:6]), (x[6:], y[6:])], [(z, w)]
    loss = None if outputs else LOSS
    rows, others = ((oracle.output_rows(model, a, len(a)) if outputs else rows_of(model, a, b)) for a, b in ((x, y), (z, w)))
    J, K = (hesse.parameter_jacobian(model, loss, data) for data in (first, second))
    sizes = failing_above(monkeypatch, most)
    product = "ncd,mkd->ncmk" if outputs else "nd,md->nm"
    assert oracle.difference(J.gram(), torch.einsum(product, rows, rows)) < 1e-12
    assert oracle.difference(J.gram(K), torch.einsum(product, rows, others)) < 1e-12
    assert max(sizes) > most, "something has failed"


def test_a_sample_that_fails_is_refused_and_stored_tiles_are_kept_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, x, y = case(12)
    J = hesse.parameter_jacobian(model, LOSS, [(x[:6], y[:6]), (x[6:], y[6:])])
    failing_above(monkeypatch, 5)
    with pytest.raises(MemoryBudgetError, match="allocation failed"):
        J.gram_to_zarr(tmp_path / "gram")
    assert J.gram().shape == (12, 12), "in memory it is done by halves"
    failing_above(monkeypatch, 0)
    with pytest.raises(MemoryBudgetError, match="1 x 1 samples"):
        J.gram()


def test_other_errors_of_a_tile_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = case(6)
    J = hesse.parameter_jacobian(model, LOSS, [(x, y)])
    monkeypatch.setattr(DataJacobian, "tiles", lambda J: lambda part: (_ for _ in ()).throw(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        J.gram()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_chunks_that_wait_for_their_rest(count: int) -> None:
    chunk = [(6, 6), (8, 6), (24, 24)][count]
    layout = ArrayLayout((24, 24), chunk, torch.float64)
    plan = GramPlan((6,) * 4, None, 6, 1)
    grid = [-(-24 // side) for side in chunk]
    filled = torch.zeros(24, 24, dtype=torch.bool)
    most = 0
    for rows, columns in plan.tasks:
        filled[rows, columns] = filled[columns, rows] = True
        cells = [
            filled[i * chunk[0] : (i + 1) * chunk[0], j * chunk[1] : (j + 1) * chunk[1]]
            for i in range(grid[0]) for j in range(grid[1])
        ]  # fmt: skip
        most = max(most, sum(bool(cell.any() and not cell.all()) for cell in cells))
    assert waiting_bytes(plan, layout) == most * layout.file_bytes
    assert (most == 0) == (count == 0)


def test_results_under_budgets(tmp_path: Path) -> None:
    """Budgets of some MiB for a model whose samples take 0.2 MiB each, against plain loops."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Conv2d(2, 24, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(24 * 144, 3)).double()
        x, y = torch.randn(60, 2, 12, 12, dtype=torch.float64), torch.randint(0, 3, (60,))
    rows = rows_of(model, x, y)
    data = list(zip(x.split((23, 6, 31)), y.split((23, 6, 31)), strict=True))
    for batches in ((x, y), data):
        with hesse.memory("16MiB"):
            J = hesse.parameter_jacobian(model, LOSS, batches)
            assert oracle.difference(J.norms(), rows.norm(dim=1)) < 1e-12
            assert oracle.difference(J.gram(), rows @ rows.T) < 1e-12
            P = hesse.random_projection(J, 7)
            assert oracle.difference(J.project(P), rows @ hesse.dense(P).T) < 1e-10
    with hesse.memory("30MiB"):
        R = hesse.parameter_jacobian(model, LOSS, data).to_zarr(tmp_path / "rows", chunk_bytes="1MiB")
        K = hesse.parameter_jacobian(model, LOSS, data).gram_to_zarr(tmp_path / "gram", chunk_bytes=4000)
    assert oracle.difference(R[:], rows) < 1e-12 and oracle.difference(K[:], rows @ rows.T) < 1e-12


def test_a_kernel_that_does_not_fit_comes_in_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = case(40)
    rows = oracle.output_rows(model, x, 40)
    kernel = hesse.ntk(model, [(x[:25], None), (x[25:], None)])
    assert [block.values.shape[0] for block in kernel.blocks()] == [25, 15, 15]
    monkeypatch.setattr("hesse.parameters.gram_budget._is_small", lambda *_: False)
    monkeypatch.setattr(
        "hesse.parameters.gram_budget.measured", lambda work, *_: (work(2), Appetite(0.0, 1.0 * MIB, 2.0 * MIB))[1]
    )
    monkeypatch.setattr("hesse.parameters.gram_budget._block_bytes", lambda *_: MIB // 16)
    with hesse.memory("25MiB"):
        blocks = list(kernel.blocks())
    assert len(blocks) > 3 and max(block.values.shape[0] for block in blocks) <= 13
    for block in blocks:
        wanted = torch.einsum("ncd,mkd->ncmk", rows[block.rows], rows[block.columns])
        assert oracle.difference(block.values, wanted) < 1e-12


def test_every_choice_of_tiles_fits_and_with_room_every_sample_is_captured_once(sweep_rng: random.Random) -> None:
    for _ in range(8):
        sizes, others = (tuple(sweep_rng.randint(1, 60) for _ in range(sweep_rng.randint(1, 7))) for _ in range(2))
        columns = others if sweep_rng.random() < 0.5 else None
        capture = Appetite(sweep_rng.uniform(0, 5), sweep_rng.uniform(0.1, 2))
        held, contraction, pair = sweep_rng.uniform(0.01, 0.3), sweep_rng.uniform(0, 0.1), sweep_rng.choice([0, 1])
        needs = gram_budget._Needs(capture, held, contraction, pair)
        room = sweep_rng.uniform(5, 60)
        found = list(gram_budget._choices(sizes, columns, needs, room, sweep_rng.choice([1024, 30])))
        found = [choice for choice in found if choice.tile >= 5]
        for choice in sweep_rng.sample(found, min(len(found), 4)):
            plan = GramPlan(sizes, columns, choice.tile, choice.held, choice.captured)
            here: dict[Any, int] = {}
            for step in plan.schedule(plan.tasks):
                for key in step.before:
                    del here[key]
                for key in step.fetch:
                    here[key] = key[2] - key[1]
                    assert held * sum(here.values()) + capture.of(min(choice.captured, here[key])) <= room
                rows, across = (part.stop - part.start for part in step.task)
                assert held * sum(here.values()) + contraction * max(rows, across) + pair * rows * across <= room
                for key in step.after:
                    del here[key]
        wide = min(gram_budget._choices(sizes, columns, needs, 1e6, 1024), key=lambda choice: choice.seconds)
        plan = GramPlan(sizes, columns, wide.tile, wide.held, wide.captured)
        assert plan.captures == sum(sizes) + sum(columns or ())


@pytest.mark.parametrize("outputs", [False, True])
def test_tiles_of_a_budget_hold_rows_and_are_captured_in_pieces(monkeypatch: pytest.MonkeyPatch, outputs: bool) -> None:
    """Captures that take 2 MiB a sample, rows that take a hundredth: all of them are held, and captured once."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 30, 3)).double()
        x, y = torch.randn(37, 2, 6, 5, dtype=torch.float64), torch.randint(0, 3, (37,))
    rows = oracle.output_rows(model, x, 37) if outputs else rows_of(model, x, y)
    monkeypatch.setattr("hesse.parameters.gram_budget._is_small", lambda *_: False)
    monkeypatch.setattr(appetite, "_highest", lambda work, count, *_: (work(count), 2 * MIB * count)[1])
    sizes = failing_above(monkeypatch, 16)
    J = hesse.parameter_jacobian(model, None if outputs else LOSS, list(zip(x.split((25, 12)), y.split((25, 12)), strict=True)))
    J.memory = 48 * MIB
    plan = J.gram_plan()
    assert plan.captured is not None and plan.captured <= 16 and plan.captures == 37 and plan.tile > plan.captured
    sizes.clear()
    product = "ncd,mkd->ncmk" if outputs else "nd,md->nm"
    assert oracle.difference(J.gram(), torch.einsum(product, rows, rows)) < 1e-12
    assert sizes[-3:] and max(sizes) <= 16


def test_without_a_budget_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("parameters.appetite", "parameters.data_jacobian", "core.chunked"):
        monkeypatch.setattr(f"hesse.{place}.Growth", None)
    model, x, y = case(23)
    for data in ((x, y), [(x[:9], y[:9]), (x[9:], y[9:])]):
        J = hesse.parameter_jacobian(model, LOSS, data)
        for quantity in (J.norms, J.gram, J.gram_plan, lambda J=J: J.project(hesse.random_projection(J, 3))):
            quantity()


class Still(Growth):
    """A measurement that finds nothing, whatever else the machine does."""

    @property
    def bytes(self) -> int:
        return 0


@pytest.mark.parametrize(("fixed", "each"), [(0.0, 0.02), (0.9, 0.1), (0.4, 0.6), (7.0, 0.1)])
def test_more_memory_never_refuses(monkeypatch: pytest.MonkeyPatch, fixed: float, each: float) -> None:
    """Captures that take so many MiB: from the first budget that is measured and does, every larger one does."""
    simulated(monkeypatch, lambda count: fixed + each * count)
    monkeypatch.setattr(gram_budget, "Growth", Still)
    model, x, y = case(201)
    J = hesse.parameter_jacobian(model, LOSS, list(zip(x.split((150, 51)), y.split((150, 51)), strict=True)))
    monkeypatch.setattr(gram_budget, "_is_small", lambda first, second, room: room <= MIB)
    fits, least = [], []
    for budget in (1.2, 1.5, 2, 2.5, 2.8, 3, 3.5, 4, 6, 9, 11, 15, 20, 40):
        J.memory = int(budget * MIB)
        try:
            plan = J.gram_plan()
        except MemoryBudgetError as error:
            least.append(error.least)
            fits.append(False)
        else:
            assert len(plan.tasks) < 201
            fits.append(True)
    assert fits == sorted(fits) and fits[-1], "no refusal after a plan"
    assert all(fits) == (fixed + 2 * each < 1.8)
    if least:
        J.memory = max(least)
        J.gram_plan()


def test_a_budget_of_a_few_bytes_is_given_tiles_as_large_as_the_noise() -> None:
    model, x, y = case(201)
    J = hesse.parameter_jacobian(model, LOSS, list(zip(x.split((150, 51)), y.split((150, 51)), strict=True)))
    for budget in (1, 1024, MIB):
        J.memory = budget
        assert len(J.gram_plan().tasks) < 201
