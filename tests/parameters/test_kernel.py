"""The tangent kernel: products, blocks and the whole, over batches and data sets, against plain Jacobians."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hesse
from hesse.check import assert_operator
from hesse.core.errors import DataError, MemoryBudgetError, NondeterministicError, OneShotDataError, StructureError


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv1d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(15, 4), nn.Tanh(), nn.Linear(4, 3)]
    return nn.Sequential(*layers).double()


def inputs(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(model: nn.Module, x: Tensor) -> Tensor:
    """``[N, C, D]`` by one plain backward pass an output."""
    rows = []
    for sample in x:
        value = model(sample.unsqueeze(0))[0]
        grads = [torch.autograd.grad(v, list(model.parameters()), retain_graph=True) for v in value]
        rows.append(torch.stack([torch.cat([g.flatten() for g in parts]) for parts in grads]))
    return torch.stack(rows)


def kernel_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.einsum("ncd,mkd->ncmk", rows_of(model, x), rows_of(model, y))


def test_one_batch(model: nn.Module) -> None:
    x = inputs(5)
    K, expected = hesse.ntk(model, x), kernel_of(model, x, x)
    assert torch.allclose(K.tensor(), expected, atol=1e-12)
    v = torch.randn(5, 3, dtype=torch.float64)
    assert torch.allclose(K @ v, torch.einsum("ncmk,mk->nc", expected, v), atol=1e-12)
    assert torch.allclose(hesse.dense(K), expected.reshape(15, 15), atol=1e-12)
    assert torch.allclose(hesse.diagonal(K), expected.reshape(15, 15).diagonal(), atol=1e-12)
    values = hesse.eigsh(K, 2).values
    assert torch.allclose(values.sort().values, torch.linalg.eigvalsh(expected.reshape(15, 15))[-2:], atol=1e-8)
    assert_operator(K)


def test_two_data_sets_of_uneven_batches(model: nn.Module) -> None:
    x, y = inputs(7), inputs(4, 1)
    loader = DataLoader(TensorDataset(x, torch.zeros(7)), batch_size=3)
    K, expected = hesse.ntk(model, loader, [(y[:1], None), (y[1:], None)]), kernel_of(model, x, y)
    assert K.shape == (21, 12) and torch.allclose(K.tensor(), expected, atol=1e-12)
    v, u = torch.randn(4, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    assert torch.allclose(K @ v, torch.einsum("ncmk,mk->nc", expected, v), atol=1e-12)
    assert torch.allclose(K.T @ u, torch.einsum("ncmk,nc->mk", expected, u), atol=1e-12)


def test_a_data_set_with_itself_comes_in_blocks_of_the_lower_triangle(model: nn.Module) -> None:
    x = inputs(7)
    K, expected = hesse.ntk(model, [x[:3], x[3:6], x[6:]]), kernel_of(model, x, x)
    blocks = list(K.blocks())
    places = [(block.rows.start, block.columns.start) for block in blocks]
    assert places == [(0, 0), (3, 0), (3, 3), (6, 0), (6, 3), (6, 6)]
    for block in blocks:
        assert torch.allclose(block.values, expected[block.rows][:, :, block.columns], atol=1e-12)
    assert torch.allclose(K.tensor(), expected, atol=1e-12)


def test_chosen_outputs_and_parameters(model: nn.Module) -> None:
    x = inputs(4)
    rows = rows_of(model, x)
    assert torch.allclose(hesse.ntk(model, x, outputs=2).tensor(), rows[:, 2] @ rows[:, 2].T, atol=1e-12)
    two = hesse.ntk(model, x, outputs=[2, 0])
    assert torch.allclose(two.tensor(), torch.einsum("ncd,mkd->ncmk", rows[:, [2, 0]], rows[:, [2, 0]]), atol=1e-12)
    v = torch.randn(4, 2, dtype=torch.float64)
    assert torch.allclose(two @ v, torch.einsum("ncmk,mk->nc", two.tensor(), v), atol=1e-12)
    last = hesse.ntk(model, x, params=["5.weight"]).tensor()
    part = rows[:, :, -15:-3]
    assert torch.allclose(last, torch.einsum("ncd,mkd->ncmk", part, part), atol=1e-12)


def test_outputs_of_each_samples_own(model: nn.Module) -> None:
    x, own = inputs(5), torch.tensor([2, 0, 0, 1, 2])
    rows = rows_of(model, x)[torch.arange(5), own]
    K = hesse.ntk(model, [x[:2], x[2:4], x[4:]], outputs=own)
    assert torch.allclose(K.tensor(), rows @ rows.T, atol=1e-12)
    v = torch.randn(5, dtype=torch.float64)
    assert torch.allclose(K @ v, rows @ (rows.T @ v), atol=1e-12)


def test_bad_data_is_refused(model: nn.Module) -> None:
    x = inputs(6)

    def once() -> Iterator[Tensor]:
        yield x

    with pytest.raises(OneShotDataError):
        hesse.ntk(model, once())
    with pytest.raises(DataError, match="a list of two tensors"):
        hesse.ntk(model, [x[:3], x[3:]])
    with pytest.raises(DataError, match="without a batch"):
        hesse.ntk(model, [])
    shuffled = hesse.ntk(model, DataLoader(TensorDataset(x, torch.zeros(6)), batch_size=3, shuffle=True))
    with pytest.raises(DataError, match="other samples"):
        for _ in range(40):
            shuffled @ torch.ones(6, 3, dtype=torch.float64)
    with pytest.raises(StructureError, match="outputs="):
        hesse.ntk(model, [x[:2], x[2:3], x[3:]], outputs=torch.zeros(7, dtype=torch.long))
    with pytest.raises(NondeterministicError):
        hesse.ntk(nn.Sequential(model, nn.Dropout(0.5)), x)
    with pytest.raises(MemoryBudgetError):
        hesse.ntk(model, x, memory=64).tensor()


def test_repr(model: nn.Module) -> None:
    assert repr(hesse.ntk(model, inputs(5), inputs(4))) == "TangentKernel(5 x 3 by 4 x 3 outputs, 100 parameters)"
