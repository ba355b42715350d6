"""The average over a data set: weights, passes over the data, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import hesse
from hesse.core.errors import DataError, OneShotDataError, StructureError
from hesse.core.space import Space
from hesse.operators import Average, Dense, LinearOperator, LowRank, Tag, average, identity

from .zoo import drawing

T = drawing(torch.float64)
BATCHES = [(T(3, 5), 0.5), (T(3, 5), 7.0), (T(3, 5), 2.25)]
MEAN = (0.5 * BATCHES[0][0] + 7.0 * BATCHES[1][0] + 2.25 * BATCHES[2][0]) / 9.75


class Counting:
    """A data set that counts how often it is read, and how many batches were taken."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.passes, self.taken = batches, 0, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for batch in self.batches:
            self.taken += 1
            yield batch


def make(batch: tuple[torch.Tensor, float]) -> LinearOperator:
    A = Dense(batch[0])
    A.mass = batch[1]
    return A


def test_each_batch_weighs_as_much_as_its_mass() -> None:
    A = average(make, BATCHES)
    v, u, V = T(5), T(3), T(4, 5)
    torch.testing.assert_close(A @ v, MEAN @ v)
    torch.testing.assert_close(A.T @ u, MEAN.mT @ u)
    torch.testing.assert_close(A.T.T @ v, MEAN @ v)
    torch.testing.assert_close(A @ V, V @ MEAN.mT)
    assert A.mass == 9.75


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_over_all_data(reduction: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 5)).double()
    x, y, weight = T(9, 4), torch.tensor([0, 4, 1, 1, 2, 3, 0, 0, 2]), T(5).abs()
    loss = torch.nn.CrossEntropyLoss(weight, ignore_index=1, reduction=reduction)
    H: Any = hesse.loss_hessian(model, loss, [(x[:2], y[:2]), (x[2:3], y[2:3]), (x[3:], y[3:])])
    assert isinstance(H, Average)
    expected = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
    for found, wanted in zip(H.gradient.values(), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    G: Any = hesse.ggn(model, loss, [(x, y)])
    assert not hasattr(G, "gradient")


def test_additive() -> None:
    A = average(make, BATCHES, additive=True)
    total = BATCHES[0][0] + BATCHES[1][0] + BATCHES[2][0]
    v, u = T(5), T(3)
    torch.testing.assert_close(A @ v, total @ v)
    torch.testing.assert_close(A.T @ u, total.mT @ u)
    assert A.mass == 1.0


@pytest.mark.parametrize(("told", "expected"), [(None, True), (False, False), (True, True)])
def test_whether_to_add_is_taken_from_the_operators_unless_told(told: bool | None, expected: bool) -> None:
    def additive(batch: tuple[torch.Tensor, float]) -> LinearOperator:
        A = make(batch)
        A.additive = True  # pyright: ignore[reportAttributeAccessIssue]
        return A

    A = average(additive, BATCHES, additive=told)
    total = BATCHES[0][0] + BATCHES[1][0] + BATCHES[2][0]
    v = T(5)
    torch.testing.assert_close(A @ v, (total if expected else MEAN) @ v)
    assert average(make, BATCHES).additive is False


def test_a_batch_of_mass_zero_has_no_part_in_the_average() -> None:
    nothing = (torch.full((3, 5), torch.nan, dtype=torch.float64), 0.0)
    v, u = T(5), T(3)
    for batches in ([nothing, *BATCHES], [BATCHES[0], nothing, *BATCHES[1:]]):
        A = average(make, batches)
        torch.testing.assert_close(A @ v, MEAN @ v)
        torch.testing.assert_close(A.T @ u, MEAN.mT @ u)
    with pytest.raises(DataError, match="total mass of 0"):
        average(make, [nothing, nothing]) @ v


def test_averages_of_averages_weigh_by_mass() -> None:
    nested = Average(lambda part: Average(make, part), [BATCHES[:1], BATCHES[1:]])
    v = T(5)
    torch.testing.assert_close(nested @ v, MEAN @ v)
    torch.testing.assert_close(nested.T @ torch.ones(3, dtype=torch.float64), MEAN.sum(0))
    assert nested.mass == 9.75


def test_mass_before_and_after_a_product() -> None:
    data = Counting(BATCHES)
    A = average(make, data)
    assert A.mass == 9.75
    read = data.passes
    assert A.mass == 9.75
    assert data.passes == read
    again = Counting(BATCHES)
    B = average(make, again)
    B @ T(5)
    read = again.passes
    assert B.mass == 9.75
    assert again.passes == read


def test_each_product_reads_the_data_once_and_a_block_shares_the_pass() -> None:
    data = Counting(BATCHES)
    A = average(make, data)
    assert data.taken == 1  # the first batch tells the spaces
    for product in (
        lambda: A @ T(5),
        lambda: A @ T(6, 5),
        lambda: A.flat @ T(5, 9),
        lambda: A.T @ T(2, 4, 3),
    ):
        before = data.passes, data.taken
        product()
        assert (data.passes, data.taken) == (before[0] + 1, before[1] + 3)


def test_combinations_read_no_data_until_they_are_applied() -> None:
    data = Counting(BATCHES)
    A = average(make, data)
    taken = data.taken
    combination = 2 * (A + 0.5 * A) - A
    square = A.T @ A + 0.1 * identity(A.in_space)
    repr(combination), repr(square), combination.T, combination.H
    assert data.taken == taken


def test_data_that_change_between_products_are_read_again_where_they_are_not_checked() -> None:
    batches = [BATCHES[0]]
    A = average(make, batches, data_check=False)
    v = T(5)
    torch.testing.assert_close(A @ v, BATCHES[0][0] @ v)
    batches[:] = [BATCHES[1]]
    torch.testing.assert_close(A @ v, BATCHES[1][0] @ v)
    assert A.mass == 7.0


@pytest.mark.parametrize("data", [iter(BATCHES), (batch for batch in BATCHES), map(tuple, BATCHES)])
def test_data_that_can_be_read_only_once_are_refused(data) -> None:
    with pytest.raises(OneShotDataError, match=r"pass list\(data\)"):
        average(make, data)


def test_no_data_are_refused() -> None:
    with pytest.raises(DataError, match="needs data"):
        average(make, [])


def test_data_that_run_out_are_refused() -> None:
    batches = list(BATCHES)
    A = average(make, batches)
    batches.clear()
    with pytest.raises(DataError, match="no batch in this pass"):
        A @ T(5)


@pytest.mark.parametrize("rows", [1, 2])
def test_batches_between_other_spaces_are_refused(rows: int) -> None:
    A = average(make, [(T(3, 5), 1.0), (T(rows, 5), 1.0)])
    with pytest.raises(StructureError, match="same spaces"):
        A @ T(5)


def test_a_batch_without_a_tag_that_the_first_batch_had_is_refused() -> None:
    def signed(sign: float) -> LinearOperator:
        return LowRank(T(3, 1), torch.tensor([sign], dtype=torch.float64))

    A = average(signed, [1.0, -5.0])
    with pytest.raises(StructureError, match="positive semi-definite"):
        A @ T(3)


def test_tags_that_all_batches_share_are_kept() -> None:
    tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})
    A = average(lambda scale: Dense(scale * torch.eye(3), tags=tags), [1.0, 2.0])
    assert A.tags == tags
    assert A.T is A


def test_trees_and_printed_form() -> None:
    space = Space.of({"b": T(2), "a": (T(), T(2))})
    A = average(lambda M: Dense(M, space), [T(3, 5)])
    assert repr(A) == "Average(3 x 5 over batches)"
    assert repr(A.T) == "Average(5 x 3 over batches)"
    assert repr(average(make, BATCHES, additive=True)) == "Sum(3 x 5 over batches)"
    symmetric = average(lambda _: Dense(torch.eye(2), tags=frozenset({Tag.SYMMETRIC})), [0])
    assert repr(symmetric) == "Average(2 x 2 over batches, symmetric)"


class Widening(torch.nn.Module):
    """Registers a buffer when it first meets a sample that asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(3, 2).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x.detach() > 5).any()) and not hasattr(self, "pos"):
            self.register_buffer("pos", torch.ones(2))
        return self.body(x)


@pytest.mark.parametrize("kept", [list, Counting])
def test_buffers_that_a_later_batch_registers_are_no_change(kept: Any) -> None:
    data = [(T(4, 3).clamp(-4, 4), T(4, 2)), (T(3, 3).clamp(-4, 4) + 10, T(3, 2)), (T(2, 3).clamp(-4, 4), T(2, 2))]
    model, loss, v = Widening(), torch.nn.MSELoss(), T(8)
    A = hesse.ggn(model, loss, kept(data))
    assert "pos" not in model._buffers
    x = torch.cat([torch.cat([inputs, torch.ones(len(inputs), 1).double()], 1) for inputs, _ in data])
    block = 2 * x.T @ x / (2 * len(x))  # of each output: weights, then bias
    weight, bias = v[:6].reshape(2, 3), v[6:]
    rows = torch.cat([weight, bias[:, None]], 1) @ block
    expected = torch.cat([rows[:, :3].flatten(), rows[:, 3]])
    for _ in range(2):
        torch.testing.assert_close(A.flat @ v, expected)
    assert "pos" in model._buffers


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_results_are_added_up_in_32_bits(dtype: torch.dtype, additive: bool) -> None:
    mass = 1.0 if additive else 2.0**18  # infinite in float16
    batches = [(T(3, 5).abs().to(dtype) / 8, mass) for _ in range(600)]
    A = average(make, batches, additive=additive)
    v = T(5).abs().to(dtype)
    whole = torch.stack([matrix for matrix, _ in batches]).double().sum(0) / (1 if additive else len(batches))
    rounding = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0.0, "check_dtype": False}
    product = A @ v
    assert product.dtype == dtype
    torch.testing.assert_close(product.double(), whole @ v.double(), **rounding)
    torch.testing.assert_close((A.T @ torch.ones(2, 3, dtype=dtype)).double(), whole.sum(0).expand(2, 5), **rounding)
    diagonal = average(lambda batch: make((batch[0][:, :3], batch[1])), batches, additive=additive)
    torch.testing.assert_close(hesse.diagonal(diagonal).double(), whole[:, :3].diagonal(), **rounding)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_derivatives_by_16_bit_vectors_are_added_up_in_32_bits(dtype: torch.dtype, additive: bool) -> None:
    """Autograd adds in the dtype of the vector: in 16 bits a sum of 600 alike stands still."""
    batches = [(T(3, 5).abs().to(dtype) / 8, 1.0) for _ in range(600)]
    A = average(make, batches, additive=additive)
    whole = torch.stack([matrix for matrix, _ in batches]).double().sum(0) / (1 if additive else len(batches))
    v, V = T(5).to(dtype).requires_grad_(), T(2, 5).to(dtype).requires_grad_()
    (A @ v).float().sum().backward()
    (A @ V).float().sum().backward()
    assert v.grad is not None and V.grad is not None
    for found in (v.grad, *V.grad):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), whole.sum(0), rtol=4 * torch.finfo(dtype).eps, atol=0.0)
