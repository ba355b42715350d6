"""Sparse Jacobians and Hessians beside dense ones of torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.core.errors import StructureError, UnsupportedError
from hesse.rules.sparsity.forms import sparsity_rules
from hesse.sparse import Pattern, coloring, prepare_hessian, prepare_jacobian, sparsity

from .matrices import line

REAL = torch.float64


def burgers(u: Tensor) -> Tensor:
    right, left = F.pad(u[1:], (0, 1)), F.pad(u[:-1], (1, 0))
    return -u * (right - left) + 0.1 * (right - 2 * u + left)


def hub(u: Tensor) -> Tensor:
    """Every value sees its own unknown and the first; the last one sees all."""
    return torch.cat([u[1:] * u[0], u.square().sum()[None]])


def energy(u: Tensor) -> Tensor:
    return ((u[1:] - u[:-1]) ** 4).sum() + u[0] * u.square().sum()


def tree(p: dict[str, Tensor]) -> list[Tensor]:
    return [p["a"] * p["b"][0], p["b"].sin().sum()]


def point(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dtype=REAL, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["column", "row", "bidirectional", None])
@pytest.mark.parametrize("f", [burgers, hub, lambda u: u.view(3, -1).softmax(1)], ids=["Burgers", "hub", "rows"])
def test_jacobians(f, kind) -> None:
    prepared = prepare_jacobian(f, point(12), kind=kind)
    for seed in (1, 2):
        x = point(12, seed)
        value, matrix = prepared(x, layout="dense")
        torch.testing.assert_close(matrix, torch.func.jacrev(f)(x).reshape(matrix.shape), atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(value, f(x))


@pytest.mark.parametrize("kind", ["star", "acyclic", "column", None])
def test_hessians(kind) -> None:
    prepared = prepare_hessian(energy, point(11), kind=kind)
    x = point(11, 1)
    value, matrix = prepared(x, layout="dense")
    torch.testing.assert_close(matrix, torch.func.hessian(energy)(x), atol=1e-11, rtol=1e-11)
    assert float(value) == pytest.approx(float(energy(x)))


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "scipy", "dense", "operator"])
def test_layouts_hold_the_same_numbers(layout: str) -> None:
    x = point(9)
    _, matrix = prepare_jacobian(burgers, x)(x, layout=layout)
    exact = torch.func.jacrev(burgers)(x)
    if layout == "operator":
        v = point(9, 3)
        torch.testing.assert_close(matrix @ v, exact @ v)
        torch.testing.assert_close(matrix.T @ v, exact.T @ v)
        return
    dense = torch.from_numpy(matrix.toarray()) if layout == "scipy" else matrix.to_dense()
    torch.testing.assert_close(dense, exact, atol=1e-12, rtol=1e-12)
    if layout in ("coo", "csr", "csc"):
        assert str(matrix.layout) == f"torch.sparse_{layout}"


def test_trees_in_blocks() -> None:
    x = {"a": point(3), "b": point(2, 1)}
    value, blocks = prepare_jacobian(tree, x)(x, layout="blocks")
    exact = torch.func.jacrev(tree)(x)
    for block, row in zip(blocks, exact, strict=True):
        for name in x:
            torch.testing.assert_close(block[name].to_dense(), row[name].reshape(block[name].shape), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(value, tree(x))


def test_differentiable() -> None:
    prepared, x = prepare_jacobian(burgers, point(6)), point(6, 1).requires_grad_()
    _, matrix = prepared(x, layout="dense")
    (grad,) = torch.autograd.grad(matrix.square().sum(), x)
    dense = point(6, 1).requires_grad_()
    (exact,) = torch.autograd.grad(torch.func.jacrev(burgers)(dense).square().sum(), dense)
    torch.testing.assert_close(grad, exact)


def test_a_pattern_that_misses_an_entry_is_found_out() -> None:
    narrow = prepare_jacobian(burgers, point(8), pattern=torch.eye(8))
    with pytest.raises(StructureError, match=r"at row \d, column \d, where the pattern gives"):
        narrow(point(8, 1))


def test_given_patterns_and_colors() -> None:
    known = Pattern.of(line(8))
    for given in (known, line(8), coloring(known, kind="row"), sparsity(burgers, point(8))):
        _, matrix = prepare_jacobian(burgers, point(8), pattern=given)(point(8, 1), layout="dense")
        torch.testing.assert_close(matrix, torch.func.jacrev(burgers)(point(8, 1)), atol=1e-12, rtol=1e-12)
    with pytest.raises(StructureError, match=r"\(9, 9\) for a matrix of shape \(8, 8\)"):
        prepare_jacobian(burgers, point(8), pattern=line(9))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(StructureError):
        prepare_jacobian(burgers, point(8))(point(9))


def test_local_patterns() -> None:
    def branching(u: Tensor) -> Tensor:
        return u.roll(1) if u.sum() > 0 else u.square()

    up = point(5).abs()
    with pytest.raises(UnsupportedError, match="local=True"):
        prepare_jacobian(branching, up)
    prepared = prepare_jacobian(branching, up, local=True)
    assert "holds at this point only" in prepared.explain()
    assert prepared(up).jacobian._nnz() == 5
    with pytest.raises(StructureError, match="local=True holds where its branches are taken"):
        prepare_jacobian(branching, up, local=True)(-up)


def test_explain_names_ops_without_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sparsity_rules._rules, "_softmax")
    found = sparsity(lambda x: x.softmax(1), point(9).view(3, 3))
    assert found.explain() == "no rule for _softmax (1 call): all of its operands mixed"
    assert "_softmax" in repr(found)


def test_hessian_patterns_are_symmetric() -> None:
    found = sparsity(energy, point(7), of="hessian").pattern
    assert found.is_symmetric
    assert torch.equal(found.to_dense(), torch.func.hessian(energy)(point(7, 4)) != 0)


def test_leaves_of_two_dtypes_agree_to_the_coarser_one() -> None:
    x = [torch.randn(5, generator=torch.Generator().manual_seed(0)), point(5)]
    _, matrix = prepare_jacobian(lambda p: p[0].double() * p[1], x)(x, layout="dense")
    exact = torch.cat([x[1].float().double().diag(), x[0].double().diag()], 1)
    torch.testing.assert_close(matrix, exact)
