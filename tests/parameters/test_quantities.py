"""The quantities of a parameter Jacobian: options, buffers, layouts, two batches, the output Jacobian."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.check import assert_operator
from hesse.core.errors import MemoryBudgetError, StructureError


class Tokens(nn.Module):
    """Embedding and head share their weight; a padding index; a weight that is a function of its parameter; one unused."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=2)
        self.mix = nn.Parameter(torch.randn(4, 4))
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens) @ self.mix**2)).mean(1)


@pytest.fixture
def case() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Tokens().double(), torch.randint(0, 7, (6, 5)), torch.randint(0, 7, (6,))


def rows_of(model: nn.Module, values: list[Tensor]) -> Tensor:
    leaves = list(model.parameters())
    grads = [torch.autograd.grad(v, leaves, retain_graph=True, allow_unused=True, materialize_grads=True) for v in values]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])


def loss_rows(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = nn.CrossEntropyLoss(reduction="sum")
    return rows_of(model, [loss(model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))])


def test_layouts_agree(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    rows = loss_rows(model, x, y)
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y))
    assert torch.allclose(J.dense(), rows, atol=1e-13)
    by_name = J.as_dict()
    assert list(by_name) == [name for name, _ in model.named_parameters()]
    start = 0
    for name, p in model.named_parameters():
        part = rows[:, start : start + p.numel()].reshape(6, *p.shape)
        assert torch.allclose(by_name[name], part, atol=1e-13) and torch.allclose(J.as_tree()[name], part, atol=1e-13)
        assert torch.allclose(J.norms(per="parameter")[name], part.flatten(1).norm(dim=1), atol=1e-13)
        start += p.numel()
    assert torch.allclose(J.in_space.ravel(J.mean()), rows.mean(0), atol=1e-13)
    assert J.paths["unused"] == "unused" and J.paths["mix"] == "chained" and J.mass == 6.0
    with pytest.raises(StructureError, match="parameter"):
        J.norms(per="row")  # pyright: ignore[reportArgumentType]


def test_out_is_written_and_checked(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y))
    buffer = torch.full((6, J.in_space.dim), torch.nan, dtype=torch.float64)
    assert J.dense(out=buffer) is buffer and torch.equal(buffer, J.dense())
    wide = torch.full((6, 2, J.in_space.dim), torch.nan, dtype=torch.float64)
    assert torch.equal(J.dense(out=wide[:, 1]), buffer) and bool(wide[:, 0].isnan().all())
    for wrong in (buffer[:5], buffer.float(), torch.empty(6, J.in_space.dim, dtype=torch.float64, device="meta")):
        with pytest.raises(StructureError, match="shape, dtype and device"):
            J.dense(out=wrong)


def test_gram_between_two_batches(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    loss = nn.CrossEntropyLoss()
    first, second = (hesse.parameter_jacobian(model, loss, (x[s], y[s])) for s in (slice(0, 4), slice(4, 6)))
    rows = loss_rows(model, x, y)
    assert torch.allclose(first.gram(second), rows[:4] @ rows[4:].mT, atol=1e-12)
    assert torch.allclose(second.gram(first), rows[4:] @ rows[:4].mT, atol=1e-12)
    other = hesse.parameter_jacobian(model, loss, (x, y), params=["mix"])
    with pytest.raises(StructureError, match="same parameters"):
        first.gram(other)


@pytest.mark.parametrize("is_vector", [True, False])
def test_output_jacobian(case: tuple[nn.Module, Tensor, Tensor], is_vector: bool) -> None:
    model, x, y = case
    pick = (lambda out: out[:, :3]) if is_vector else (lambda out: out[:, 0])
    J = hesse.parameter_jacobian(model, None, (x, y), output=pick)
    output = pick(model(x))
    rows = rows_of(model, list(output.flatten()))
    assert J.dense().shape == (*output.shape, rows.shape[1])
    assert torch.allclose(J.dense().flatten(0, -2), rows, atol=1e-13)
    assert torch.allclose(J.norms().flatten(), rows.norm(dim=1), atol=1e-13)
    assert torch.allclose(J.gram().reshape(len(rows), len(rows)), rows @ rows.mT, atol=1e-12)
    assert torch.allclose(J.in_space.ravel(J.sum_of_squares()), rows.square().sum(0), atol=1e-12)
    assert_operator(J)


def test_laws(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    assert_operator(hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y)))


def test_the_weighted_sum_of_rows_is_the_gradient(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    y[2] = 1
    loss = nn.CrossEntropyLoss(torch.tensor([0.2, 1.7, 0.6, 0.1, 2.0, 0.4, 0.9]).double(), ignore_index=1)
    J = hesse.parameter_jacobian(model, loss, (x, y))
    expected = torch.autograd.grad(loss(model(x), y), list(model.parameters()), allow_unused=True, materialize_grads=True)
    found = J.T @ (torch.ones(6, dtype=torch.float64) / J.mass)
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(found.values(), expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_are_kept(case: tuple[nn.Module, Tensor, Tensor], dtype: torch.dtype) -> None:
    model, x, y = case
    rows = loss_rows(model, x, y)
    J = hesse.parameter_jacobian(model.to(dtype), nn.CrossEntropyLoss(), (x, y))
    rtol = 20 * torch.finfo(dtype).eps
    for found, expected in ((J.dense(), rows), (J.norms(), rows.norm(dim=1)), (J.gram(), rows @ rows.mT)):
        assert found.dtype == dtype
        assert float((found.double() - expected).norm()) < rtol * float(expected.norm())


def test_a_budget_too_small_says_what_would_do(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y), memory=100)
    with pytest.raises(MemoryBudgetError) as caught:
        J.dense()
    again = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y), memory=caught.value.least)
    assert torch.equal(again.dense(), hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y)).dense())
    assert J.norms().shape == (6,)


def test_repr(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y))
    assert repr(J) == "ParameterJacobian(6 x 54 of the loss by 4 parameters; paths: chained, rule, unused)"
