"""Convolutions as operators against PyTorch's own applied to unit images, their derivatives, and the algebra with them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, vmap

from hesse.check import assert_operator
from hesse.convolutions import Convolution, TransposedConvolution, convolution
from hesse.core.errors import LeafError, StructureError
from hesse.linalg import dense
from hesse.operators import Diagonal, Identity

from .torch_oracle import Options, draw, named, randn

DTYPES = (torch.float64, torch.complex128, torch.float32, torch.complex64)
REAL, COMPLEX = dict(named()), dict(named(torch.complex128))
KINDS = [(name, drawn) for pool in (REAL, COMPLEX) for name, drawn in pool.items()]


def made(drawn: Options, weight: Tensor | None = None) -> Convolution:
    return convolution(drawn.weight if weight is None else weight, drawn.shape, **drawn.options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_of_any_options(dtype: torch.dtype, sweep: Callable[..., list[int]], untouched: None) -> None:
    eps = torch.finfo(dtype).eps
    for seed in sweep(range(400), 15):
        drawn = draw(random.Random(seed), dtype)
        A, M = made(drawn), drawn.matrix()
        x, y = (
            randn(2, 3, *drawn.shape, dtype=dtype, seed=seed),
            randn(2, 3, *A.out_space.shapes[0], dtype=dtype, seed=seed + 1),
        )
        scale = 30 * eps * float(M.abs().sum(1).max() + M.abs().sum(0).max())
        assert A.shape == tuple(M.shape), str(drawn)
        for B, N, v in ((A, M, x), (A.T, M.mT, y), (A.H, M.mH, y), (A.T.T, M, x), (A.H.T, M.conj(), x)):
            products = B @ v
            assert products.dtype == dtype and products.shape[:2] == (2, 3)
            assert float((products.flatten(2) - v.flatten(2) @ N.mT).abs().max()) <= scale, str(drawn)
            assert float((B @ v[0, 1] - products[0, 1]).abs().max()) <= scale, str(drawn)
            assert (B @ v[:, :0]).shape == (2, 0, *B.out_space.shapes[0])
        left, right = (y.conj() * (A @ x)).flatten(2).sum(-1), ((A.H @ y).conj() * x).flatten(2).sum(-1)
        assert float((left - right).abs().max()) <= 30 * scale, str(drawn)


def test_laws_of_any_options(sweep: Callable[..., list[int]]) -> None:
    dtypes = (*DTYPES, torch.bfloat16)
    for seed in sweep(range(100), 6):
        A = made(draw(random.Random(seed), dtypes[seed % len(dtypes)]))
        assert_operator(A)
        assert_operator(A.T)
        assert_operator(A.H)


def products(drawn: Options, transposed: bool) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]:
    """``f(weight, image)`` and where to take it."""

    def f(weight: Tensor, x: Tensor) -> Tensor:
        A = made(drawn, weight)
        return (A.T if transposed else A) @ x

    shape = made(drawn).out_space.shapes[0] if transposed else drawn.shape
    return f, drawn.weight, randn(2, *shape, dtype=drawn.weight.dtype, seed=3)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("transposed", [False, True])
def test_derivatives_of_first_and_second_order(transposed: bool, sweep: Callable[..., list[tuple[str, Options]]]) -> None:
    for _, drawn in sweep(KINDS, 3):
        f, *at = products(drawn, transposed)
        at = tuple(part.clone().requires_grad_() for part in at)
        assert gradcheck(f, at, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True, fast_mode=True)
        assert gradgradcheck(f, at, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_functional_transforms(transposed: bool, sweep: Callable[..., list[tuple[str, Options]]]) -> None:
    for _, drawn in sweep(KINDS, 4):
        f, w, x = products(drawn, transposed)
        W, X = randn(3, *w.shape, dtype=w.dtype, seed=5), randn(3, *x.shape, dtype=x.dtype, seed=6)
        close = {"rtol": 0, "atol": 1e-12}
        torch.testing.assert_close(vmap(f, (0, None))(W, x), torch.stack([f(a, x) for a in W]), **close)
        torch.testing.assert_close(vmap(f, (None, 0))(w, X), torch.stack([f(w, b) for b in X]), **close)
        torch.testing.assert_close(vmap(f)(W, X), torch.stack([f(a, b) for a, b in zip(W, X, strict=True)]), **close)
        if not w.is_complex():
            torch.testing.assert_close(jacfwd(f)(w, x), jacrev(f)(w, x), **close)


def test_the_weight_is_the_given_one() -> None:
    weight = torch.nn.Parameter(randn(2, 1, 3))
    A = convolution(weight, (1, 5), padding=1)
    assert A.weight is weight
    before = A @ torch.ones(1, 5)
    with torch.no_grad():
        weight.mul_(2)
    torch.testing.assert_close(A @ torch.ones(1, 5), 2 * before)
    (grad,) = torch.autograd.grad((A.T @ (A @ torch.ones(1, 5))).sum(), weight)
    assert grad.shape == weight.shape


def test_images_of_another_dtype_are_cast_as_for_every_operator() -> None:
    A = convolution(randn(2, 1, 3), (1, 5))
    x = randn(1, 5).float()
    assert torch.equal(A @ x, A @ x.double())
    B = convolution(randn(2, 1, 3, dtype=torch.complex128), (1, 5))
    assert torch.equal(B @ x, B @ x.to(torch.complex128))
    with pytest.raises(LeafError, match="must be real"):
        A @ (1j * x)
    with pytest.raises(StructureError, match="shape of its space"):
        A @ randn(2, 5)


def test_spaces_and_algebra() -> None:
    first, second = randn(3, 2, 3, 3, seed=1), randn(1, 3, 2, 2, seed=2)
    A, B = convolution(first, (2, 5, 4), padding=1), convolution(second, (3, 5, 4), stride=2)
    C = convolution(randn(3, 2, 1, 1, seed=3), (2, 5, 4))
    assert A.in_space == C.in_space and A.out_space == C.out_space == B.in_space
    assert A.in_space.names == ("",) and A.in_space.shapes == (torch.Size((2, 5, 4)),)
    a, b, c = dense(A), dense(B), dense(C)
    D = Diagonal(randn(2, 5, 4, seed=4))
    for operator, matrix in (
        (B @ A, b @ a),
        (2 * A - C, 2 * a - c),
        (A.T @ A + 0.5 * Identity(A.in_space), a.mT @ a + 0.5 * torch.eye(40, dtype=a.dtype)),
        ((B @ (A + C)).T @ (B @ A) @ D, (b @ (a + c)).mT @ (b @ a) @ torch.diag(D.entries.flatten())),  # pyright: ignore
    ):
        torch.testing.assert_close(dense(operator), matrix, rtol=0, atol=1e-12)
        assert_operator(operator)
    with pytest.raises(StructureError, match="A @ B needs"):
        A @ B


def test_printed() -> None:
    A = convolution(randn(6, 1, 3, 2), (3, 8, 9), stride=(2, 1), padding=[(1, 0), 0], padding_mode="reflect", groups=3)
    text = "3x8x9 -> 6x4x8, kernel=3x2, stride=(2, 1), padding=((1, 0), 0), padding_mode='reflect', groups=3)"
    assert repr(A) == f"Convolution({text}"
    assert repr(A.T) == f"TransposedConvolution({text}"
    assert isinstance(A.T, TransposedConvolution) and A.T.T is A
    assert repr(convolution(randn(1, 1, 3), (1, 4), dilation=1)) == "Convolution(1x4 -> 1x2, kernel=3)"
