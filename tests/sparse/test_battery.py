"""No false zero: functions of every kind, Jacobians and Hessians, at 200 random points each (at a few in `make test`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree

from hesse.sparse.detect import sparsity
from tests.sparse.battery import FUNCTIONS, REAL, SCALARS

POINTS = 200
KEPT = 3
ROUNDED = 1e-12  # of the largest entry: second derivatives that cancel are not always zero to the last bit


def at(shapes: Any, seed: int) -> Any:
    """A random point."""
    g = torch.Generator().manual_seed(seed)
    if isinstance(shapes, dict):
        return {name: torch.randn(shape, dtype=REAL, generator=g) for name, shape in shapes.items()}
    return torch.randn(shapes, dtype=REAL, generator=g)


def jacobian(f: Callable[[Any], Any], x: Any) -> Tensor:
    """Row by row, by plain autograd."""
    leaves, spec = _pytree.tree_flatten(x)
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    elements = [e for y in _pytree.tree_leaves(f(_pytree.tree_unflatten(leaves, spec))) for e in y.reshape(-1)]
    return torch.stack([_row(e, leaves) for e in elements])


def hessian(f: Callable[[Any], Tensor], x: Any) -> Tensor:
    """Row by row, by plain autograd of the gradient."""
    leaves, spec = _pytree.tree_flatten(x)
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have one derivative
        grads = torch.autograd.grad(f(_pytree.tree_unflatten(leaves, spec)), leaves, create_graph=True)
    return torch.stack([_row(e, leaves) for g in grads for e in g.reshape(-1)])


def _row(element: Tensor, leaves: list[Tensor]) -> Tensor:
    if not element.requires_grad:
        return torch.zeros(sum(x.numel() for x in leaves), dtype=REAL)
    grads = torch.autograd.grad(element, leaves, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(x) if g is None else g).reshape(-1) for x, g in zip(leaves, grads, strict=True)])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_false_zero_in_jacobians(name: str, sweep) -> None:
    f, shapes = FUNCTIONS[name]
    known = sparsity(f, at(shapes, 1000)).pattern.to_dense()
    for seed in sweep(range(POINTS), KEPT):
        exact = jacobian(f, at(shapes, seed))
        assert exact.shape == known.shape
        lost = (exact != 0) & ~exact.isnan() & ~known
        assert not lost.any(), f"point {seed}: {lost.nonzero()[:5].tolist()}"


@pytest.mark.parametrize("name", SCALARS)
def test_no_false_zero_in_hessians(name: str, sweep) -> None:
    f, shapes = SCALARS[name]
    known = sparsity(f, at(shapes, 1000), of="hessian").pattern.to_dense()
    for seed in sweep(range(POINTS), KEPT):
        exact = hessian(f, at(shapes, seed))
        lost = (exact.abs() > ROUNDED * exact.abs().max()) & ~known
        assert not lost.any(), f"point {seed}: {lost.nonzero()[:5].tolist()}"


def test_the_battery_is_large() -> None:
    assert len(FUNCTIONS) >= 60
    assert len(SCALARS) >= 20
