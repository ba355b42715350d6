"""Tiles that are held for Gram matrices: rows or factors, joined from pieces, nothing else kept; against plain loops."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.core.errors import DataError
from hesse.parameters import GramPlan
from hesse.parameters.tile import Tile, held_tile
from tests.parameters import oracle
from tests.parameters.test_sweep import CASES, _case

LOSS = nn.CrossEntropyLoss()
SUM = nn.CrossEntropyLoss(reduction="sum")


def case(count: int = 9) -> tuple[nn.Module, Tensor, Tensor]:
    """A convolution, whose rows are smaller than its factors, and a linear layer, whose factors are smaller than its rows."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 48, 40)).double()
        return model, torch.randn(count, 2, 8, 6, dtype=torch.float64), torch.randint(0, 40, (count,))


def pieces(model: nn.Module, loss: Any, x: Tensor, y: Tensor, sizes: tuple[int, ...], **options: Any) -> Iterator[Any]:
    for some, targets in zip(x.split(sizes), y.split(sizes), strict=True):
        yield hesse.parameter_jacobian(model, loss, (some, targets), **options)


def held(tile: Tile) -> int:
    return sum(part.held_bytes or 0 for part in tile)


@pytest.mark.parametrize("sizes", [(9,), (3, 1, 5)])
def test_rows_are_held_where_they_are_smaller_and_shared_factors_once(sizes: tuple[int, ...]) -> None:
    model, x, y = case()
    rows = oracle.loss_rows(model, SUM, x, y)
    tile = held_tile(pieces(model, LOSS, x, y, sizes), 9)
    assert len(tile) == 1 and oracle.difference(tile[0].dense(), rows) < 1e-12
    numbers = 3 * 2 * 9 + 3 + 3 * 48 + 40  # the convolution's row, its bias's, the linear layer's input and cotangent
    assert held(tile) == 9 * 8 * numbers
    assert oracle.difference(tile[0].inner(), rows @ rows.T) < 1e-12
    other = held_tile(pieces(model, LOSS, x[:4], y[:4], (4,)), 4)
    assert oracle.difference(tile[0].inner(other[0]), rows @ rows[:4].T) < 1e-12


@pytest.mark.parametrize("sizes", [(9,), (2, 7), (4, 4, 1)])
def test_rows_of_several_outputs(sizes: tuple[int, ...]) -> None:
    model, x, y = case()
    rows = oracle.output_rows(model, x, 9)[:, [5, 0, 31]]
    found = held_tile(pieces(model, None, x, y, sizes, outputs=[5, 0, 31]), 9)
    (J,) = found
    assert oracle.difference(J.dense(), rows) < 1e-12
    assert oracle.difference(J.inner(), torch.einsum("ncd,mkd->ncmk", rows, rows)) < 1e-12
    assert held(found) == 9 * 8 * (3 * (3 * 2 * 9 + 3 + 40) + 3 * 48)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    first, again = (J.source.stacked(shapes, rows.new_zeros(1))["0.weight"].dense() for _ in range(2))
    assert first.data_ptr() == again.data_ptr() and first.shape == (27, 54), "no copy is made of rows"


def test_a_piece_is_let_go_before_the_next_one_is_captured() -> None:
    model, x, y = case()
    alive: list[weakref.ref[Any]] = []

    def watched() -> Iterator[Any]:
        for start in range(0, 9, 3):
            assert all(ref() is None for ref in alive)
            (J,) = pieces(model, LOSS, x[start : start + 3], y[start : start + 3], (3,))
            alive.extend(weakref.ref(thing) for thing in (J, J.source))
            yield J
            del J

    assert held(held_tile(watched(), 9)) and len(alive) == 6


def test_pieces_that_cannot_be_joined_are_parts() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Embedding(50, 4), nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 3)]
        model: Any = nn.Sequential(*layers).double()
        lengths = (2, 2, 5, 2)
        data = [(torch.randint(0, 50, (3, length)), torch.randint(0, 3, (3, length))) for length in lengths]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="sum")

    rows = torch.cat([oracle.loss_rows(model, loss, x, y) for x, y in data])
    captured: Any = (hesse.parameter_jacobian(model, loss, batch) for batch in data)
    tile = held_tile(captured, 12)
    assert [part.count for part in tile] == [6, 3, 3]
    assert oracle.difference(torch.cat([part.dense() for part in tile]), rows) < 1e-12
    J = hesse.parameter_jacobian(model, loss, data)
    for plan in (GramPlan(J.sizes, None, 6, 1, 3), GramPlan(J.sizes, None, 12, 1, 3), GramPlan(J.sizes, None, 5, 2, 2)):
        found = torch.zeros(12, 12, dtype=torch.float64)
        for block in J.gram_blocks(plan=plan):
            found[block.rows, block.columns] = block.values
        assert oracle.difference(found.tril(), (rows @ rows.T).tril()) < 1e-12


def test_differentiable_rows_stay_so() -> None:
    model, x, y = case(5)
    J = hesse.parameter_jacobian(model, LOSS, (x, y), create_graph=True)
    plan = GramPlan(J.sizes, None, 2, 1, 1)
    total: Any = sum(block.values.square().sum() for block in J.gram_blocks(plan=plan))
    own: Any = sum(J.gram()[task.rows, task.columns].square().sum() for task in plan.tasks)
    wanted = torch.autograd.grad(own, list(model.parameters()), retain_graph=True)
    for found, expected in zip(torch.autograd.grad(total, list(model.parameters())), wanted, strict=True):
        assert oracle.difference(found, expected) < 1e-12


@pytest.mark.parametrize("how", ["in place", "past the version"])
@pytest.mark.parametrize("convolution", [True, False])
def test_data_that_change_between_tiles(how: str, convolution: bool) -> None:
    model, x, y = case()
    if not convolution:  # what is held of a tile reads the user's memory, where nobody copies it
        with torch.random.fork_rng():
            torch.manual_seed(4)
            model = nn.Sequential(nn.Flatten(), nn.Linear(96, 40)).double()
    rows = oracle.loss_rows(model, SUM, x, y)
    numbers: Any = x.numpy() if how == "past the version" else x
    J = hesse.parameter_jacobian(model, LOSS, [(x, y)])
    blocks = J.gram_blocks(plan=GramPlan(J.sizes, None, 2, 1))
    next(blocks)
    numbers[0] *= 2  # of a tile that is held, and not read again
    for block, _ in zip(blocks, range(4), strict=False):
        assert oracle.difference(block.values, rows[block.rows] @ rows[block.columns].T) < 1e-12
    numbers[7] *= 2
    with pytest.raises(DataError, match="other samples in batch 0"):
        list(blocks)


def test_batches_that_grow_are_refused() -> None:
    model, x, y = case()
    data = [(x[:6], y[:6]), (x[6:], y[6:])]
    J = hesse.parameter_jacobian(model, LOSS, data)
    blocks = J.gram_blocks(plan=GramPlan(J.sizes, None, 2, 1))
    next(blocks)
    data[0] = (x[:7], y[:7])
    with pytest.raises(DataError, match="batch 0"):
        list(blocks)


class Counted:
    """Batches that are made anew in every pass, which is counted."""

    def __init__(self, x: Tensor, y: Tensor, size: int) -> None:
        self.x, self.y, self.size, self.made = x, y, size, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(self.x.split(self.size), self.y.split(self.size), strict=True):
            self.made += 1
            yield x.clone(), y


def test_a_batch_that_is_taken_in_parts_is_made_once_a_pass() -> None:
    model, x, y = case()
    data = Counted(x, y, 5)
    J = hesse.parameter_jacobian(model, LOSS, data)
    rows, before = oracle.loss_rows(model, SUM, x, y), data.made
    for block in J.gram_blocks(plan=GramPlan(J.sizes, None, 2, 9, 1)):
        assert oracle.difference(block.values, rows[block.rows] @ rows[block.columns].T) < 1e-12
    assert data.made == before + 2


def test_numbers_of_sixteen_bits_are_added_up_wide() -> None:
    model, x, y = case(6)
    narrow, some = model.bfloat16(), x.bfloat16()
    J = hesse.parameter_jacobian(narrow, LOSS, [(some, y)])
    whole = hesse.parameter_jacobian(narrow, LOSS, (some, y)).gram().double()
    for block in J.gram_blocks(plan=GramPlan(J.sizes, None, 4, 1, 2)):
        assert torch.allclose(block.values.double(), whole[block.rows, block.columns], rtol=2**-6, atol=2**-6)


@pytest.mark.filterwarnings("ignore")
def test_drawn_networks_in_drawn_plans(sweep: Callable[..., list[int]], sweep_rng: random.Random) -> None:
    wrong = set()
    for seed in sweep(range(CASES), 12):
        network, drawn, loss, inputs, targets = _case(seed)
        if drawn.refused:
            continue
        rows = oracle.loss_rows(network, loss.by_sample, inputs, targets)
        batches = zip(*(part.split(2) for part in (*inputs, targets)), strict=True)
        J = hesse.parameter_jacobian(network, loss.loss, [(batch[:-1], batch[-1]) for batch in batches])
        plan = GramPlan(J.sizes, None, sweep_rng.randint(1, 5), sweep_rng.randint(1, 3), sweep_rng.choice([None, 1, 2]))
        for block in J.gram_blocks(plan=plan):
            if not oracle.difference(block.values, rows[block.rows] @ rows[block.columns].T) < 1e-9:
                wrong.add(f"seed {seed}, {plan}: {drawn.label}, loss {loss.label}")
    assert not wrong, "\n".join(wrong)
