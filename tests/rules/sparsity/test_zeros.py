"""Zeros of constants, where they are asked for: the pattern is that of the Jacobian with these constants, and follows them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.core.errors import StructureError
from hesse.sparse.detect import sparsity

REAL = torch.float64


def thinned(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=REAL, generator=g) * (torch.rand(shape, generator=g) > 0.6)


A, BATCH, VECTOR, WEIGHT = thinned(4, 6), thinned(2, 4, 6, seed=1), thinned(6, seed=2), thinned(4, 2, 3, 3, seed=3)
WEIGHT[:, :, 0, 0] = WEIGHT[:, :, 2, 1] = 0
STENCIL = torch.tensor([[[[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]]], dtype=REAL)
FULL = thinned(6, 3, seed=4) + 3
FUNCTIONS = {
    "mul": (lambda x: x * VECTOR, (6,)),
    "mul, broadcast": (lambda x: x * VECTOR, (2, 6)),
    "mul, broadcast the other way": (lambda x: x * A[:, :1], (1, 6)),
    "mul in place": (lambda x: x.clone().mul_(VECTOR), (6,)),
    "mm": (lambda x: A @ x, (6, 2)),
    "mm from the right": (lambda x: x @ A, (3, 4)),
    "both": (lambda x: A @ x @ A, (6, 4)),
    "mv": (lambda x: A @ x, (6,)),
    "mv of what varies": (lambda x: x @ VECTOR, (3, 6)),
    "dot": (lambda x: (x @ VECTOR)[None], (6,)),
    "addmm": (lambda x: torch.addmm(x[:4] * 2, A, x), (6, 2)),
    "addmv": (lambda x: torch.addmv(x[:4], A, x), (6,)),
    "bmm": (lambda x: BATCH @ x, (2, 6, 3)),
    "baddbmm": (lambda x: torch.baddbmm(x[:, :4], BATCH, x), (2, 6, 3)),
    "einsum": (lambda x: torch.einsum("nij,nj->ni", BATCH, x), (2, 6)),
    "linear": (lambda x: F.linear(x, A), (3, 6)),
    "a mask of a constant": (lambda x: x * (FULL > 3), (6, 3)),
    "stencil": (lambda x: F.conv2d(x, STENCIL, padding=1), (1, 1, 4, 5)),
    "network": (lambda x: F.linear(x, A).tanh() @ BATCH[0], (2, 6)),
}


def jacobian(f, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    rows = [torch.autograd.grad(e, x, retain_graph=True, allow_unused=True)[0] for e in f(x).reshape(-1)]
    return torch.stack([torch.zeros_like(x) if r is None else r for r in rows]).flatten(1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_pattern_is_that_of_the_jacobian_with_these_constants(name: str) -> None:
    f, shape = FUNCTIONS[name]
    x = torch.randn(shape, dtype=REAL, generator=torch.Generator().manual_seed(5))
    exact = jacobian(f, x) != 0
    assert torch.equal(sparsity(f, x, constants="values").pattern.to_dense(), exact)
    assert sparsity(f, x).pattern.nnz > exact.sum()


def test_taps_that_no_channel_uses_are_left_out() -> None:
    x = torch.randn(1, 4, 4, 5, dtype=REAL, generator=torch.Generator().manual_seed(6))
    for f in (lambda t: F.conv2d(t, WEIGHT, padding=1, groups=2), lambda t: F.conv_transpose2d(t, WEIGHT, groups=2)):
        exact, found = jacobian(f, x) != 0, sparsity(f, x, constants="values").pattern
        assert not (exact & ~found.to_dense()).any()
        assert found.nnz < sparsity(f, x).pattern.nnz


def test_a_constant_that_is_written_over_does_not_count() -> None:
    found = sparsity(lambda x: VECTOR.clone().mul_(x), torch.ones(6, dtype=REAL), constants="values")
    assert torch.equal(found.pattern.to_dense(), torch.eye(6, dtype=torch.bool))


def test_hessians() -> None:
    x = torch.randn(6, dtype=REAL, generator=torch.Generator().manual_seed(7)).requires_grad_()

    def f(t: Tensor) -> Tensor:
        return (A @ t).pow(3).sum() + (t.prod() * VECTOR).sum() * 0 + (t * VECTOR).pow(4).sum()

    def g(t: Tensor) -> Tensor:
        return (A @ t).pow(3).sum() + (t * VECTOR).pow(4).sum()

    (grad,) = torch.autograd.grad(g(x), x, create_graph=True)
    exact = torch.stack([torch.autograd.grad(e, x, retain_graph=True)[0] for e in grad]) != 0
    assert torch.equal(sparsity(g, x.detach(), of="hessian", constants="values").pattern.to_dense(), exact)
    assert sparsity(f, x.detach(), of="hessian", constants="values").pattern.nnz == 36  # a number's zero is not a constant's


def test_zeros_of_the_input_do_not_count() -> None:
    x = torch.tensor([0.0, 1.0, 0.0], dtype=REAL)
    found = sparsity(lambda t: t * t.flip(0), x, constants="values", local=True)
    assert found.pattern.to_dense().tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_the_result_knows_what_it_used() -> None:
    matrix, x = A.clone(), torch.ones(6, dtype=REAL)
    found = sparsity(lambda t: matrix @ t, x, constants="values")
    assert len(found.guard) == 1
    assert "keep their zeros" in found.explain()
    matrix.mul_(1.0)  # moves the version, not the values
    assert found.guard.changed() == []
    matrix[0, 0] += 1
    assert found.guard.changed() == ["torch.float64 of shape (4, 6)"]


def test_indices_and_masks_are_watched_always_and_factors_are_not() -> None:
    index, scores, factor, limit = torch.tensor([2, 0, 1]), VECTOR.clone(), VECTOR.clone(), torch.tensor(1.0)

    def f(t: Tensor) -> Tensor:
        kept = scores.abs() > 0.1
        return torch.where(kept, t, t.flip(0))[index] * factor[:3] * (2 if limit > 0 else 3) + torch.zeros(3)

    found = sparsity(f, torch.ones(6, dtype=REAL))
    assert len(found.guard) == 3
    factor.zero_()
    assert found.guard.changed() == []
    for constant in (index, scores, limit):
        constant[...] = 0
    assert found.guard.changed() == ["torch.float64 of shape (6,)", "torch.int64 of shape (3,)", "torch.float32 of shape ()"]


def test_constants_are_counted_one_of_two_ways() -> None:
    with pytest.raises(StructureError, match="'structure' or their 'values'"):
        sparsity(torch.sin, torch.ones(2), constants="zeros")  # pyright: ignore[reportArgumentType]
