"""Matrix, sparse entries, diagonal, trace and sums of squares of convolutions, against matrices by PyTorch."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import hesse
from hesse.convolutions import convolution
from hesse.core.errors import MemoryBudgetError
from hesse.linalg.diagonal_rules import column_squares_rule, diagonal_rule
from hesse.linalg.norm_rules import norm_rule
from hesse.linalg.sparse_entries import entries_rule
from hesse.operators import Congruence, Identity

from .torch_oracle import Options, draw, named, randn

SEEDS = range(400)


def case(seed: int) -> tuple[Options, hesse.LinearOperator, Tensor]:
    rng = random.Random(seed)
    drawn = draw(rng, rng.choice((torch.float64, torch.complex128)))
    return drawn, convolution(drawn.weight, drawn.shape, **drawn.options), drawn.matrix()


def close(found: Tensor, expected: Tensor, drawn: Options) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype, str(drawn)
    scale = 1 + float(expected.abs().max())
    assert float((found - expected).abs().max()) <= 1e-13 * scale, str(drawn)


def test_matrix(sweep: Callable[..., list[int]]) -> None:
    for seed in sweep(SEEDS, 40):
        drawn, A, M = case(seed)
        close(hesse.dense(A), M, drawn)
        close(hesse.dense(A.T), M.mT, drawn)
        close(hesse.dense(A.H), M.mH, drawn)


def test_sparse_entries(sweep: Callable[..., list[int]]) -> None:
    for seed in sweep(SEEDS, 30):
        drawn, A, M = case(seed)
        for B, N in ((A, M), (A.T, M.mT), (2 * A, 2 * M)):
            array = entries_rule(B)
            close(torch.from_numpy(array.toarray()), N.resolve_conj(), drawn)
        assert entries_rule(A).nnz <= len(drawn.weight.flatten()) * torch.Size(A.out_space.shapes[0][1:]).numel()


def test_norm_and_sums_of_squares(sweep: Callable[..., list[int]]) -> None:
    for seed in sweep(SEEDS, 40):
        drawn, A, M = case(seed)
        expected = float(torch.linalg.matrix_norm(M))
        for B in (A, A.T, A.H):
            assert norm_rule(B, "fro") == pytest.approx(expected, rel=1e-13), str(drawn)
        columns, rows = column_squares_rule(A), column_squares_rule(A.T)
        assert columns is not None and rows is not None
        close(columns, M.abs().square().sum(0).to(M.dtype), drawn)
        close(rows, M.abs().square().sum(1).to(M.dtype), drawn)
        close(hesse.diagonal(Congruence(A)), (M.mH @ M).diagonal(), drawn)


def test_taps_that_cancel_where_they_meet() -> None:
    A = convolution(torch.tensor([[[1.0, -1.0, 0.0]]]), (1, 1), padding=1, padding_mode="replicate")
    assert norm_rule(A, "fro") == 0
    B = convolution(randn(2, 2, 3, 3), (2, 4, 5), padding=1)
    for scale in (1e-200, 1e200):
        C = convolution(scale * B.weight, (2, 4, 5), padding=1)
        assert norm_rule(C, "fro") == pytest.approx(scale * float(norm_rule(B, "fro") or 0), rel=1e-12)
    assert norm_rule(convolution(torch.zeros(2, 1, 3), (1, 5)), "fro") == 0
    assert norm_rule(B, 2) is None


def test_norm_in_16_bits() -> None:
    weight = randn(2, 3, 3).bfloat16()
    A = convolution(weight, (3, 40), padding=1)
    expected = torch.linalg.matrix_norm(hesse.dense(convolution(weight.double(), (3, 40), padding=1)))
    assert norm_rule(A, "fro") == pytest.approx(float(expected), rel=1e-6)
    assert entries_rule(A) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(
    ("weight", "shape", "options"),
    [
        ((3, 3, 3), (3, 6), {"padding": 1}),
        ((4, 2, 3, 3), (4, 5, 3), {"padding": 1, "groups": 2}),
        ((2, 1, 2, 4), (2, 4, 5), {"padding": "same", "groups": 2}),
        ((2, 2, 5, 3), (2, 4, 3), {"padding": (2, 1), "padding_mode": "replicate"}),
        ((2, 2, 3, 3), (2, 4, 3), {"padding": 1, "padding_mode": "reflect"}),
        ((1, 1, 3, 3, 1), (1, 2, 3, 4), {"padding": (1, 1, 0), "padding_mode": "circular"}),
        ((2, 2, 3), (2, 5), {"padding": [(0, 2)]}),
        ((2, 2, 4), (2, 3), {"padding": 3, "stride": 2}),
    ],
)
def test_diagonal_and_trace(dtype: torch.dtype, weight: tuple[int, ...], shape: tuple[int, ...], options: dict) -> None:
    drawn = Options(randn(*weight, dtype=dtype), shape, options)
    A, M = convolution(drawn.weight, shape, **options), drawn.matrix()
    for B, N in ((A, M), (A.T, M.mT), (A.H, M.mH), (3 * A - A.T, 3 * M - M.mT)):
        known = diagonal_rule(B)
        assert known is not None
        close(known, N.diagonal(), drawn)
        found = hesse.trace(B)
        assert found.products == 0
        assert complex(found.value) == pytest.approx(complex(N.trace()), rel=1e-12, abs=1e-12)


def test_square_between_images_of_two_shapes() -> None:
    drawn = Options(randn(8, 2, 2, 2), (2, 4, 6), {"stride": 2})
    A, M = convolution(drawn.weight, drawn.shape, **drawn.options), drawn.matrix()
    assert A.shape == (48, 48) and diagonal_rule(A) is None
    torch.testing.assert_close(hesse.diagonal(A), M.diagonal(), rtol=0, atol=1e-13)
    assert complex(hesse.trace(A).value) == pytest.approx(complex(M.trace()))


def test_derivatives_of_the_matrix() -> None:
    for name, drawn in named():
        G = randn(*convolution(drawn.weight, drawn.shape, **drawn.options).shape, seed=8)

        def by_entries(weight: Tensor, drawn: Options = drawn, G: Tensor = G) -> Tensor:
            A = convolution(weight, drawn.shape, **drawn.options)
            known = column_squares_rule(A)
            assert known is not None
            return (hesse.dense(A).sin() * G).sum() + known.exp().sum()

        def by_products(weight: Tensor, drawn: Options = drawn, G: Tensor = G) -> Tensor:
            M = Options(weight, drawn.shape, drawn.options).matrix()
            return (M.sin() * G).sum() + M.square().sum(0).exp().sum()

        weight = drawn.weight.requires_grad_()
        pair = [torch.autograd.grad(f(weight), weight)[0] for f in (by_entries, by_products)]
        torch.testing.assert_close(*pair, rtol=1e-11, atol=1e-11, msg=name)


def test_a_matrix_beyond_the_budget() -> None:
    A = convolution(randn(4, 4, 3, 3), (4, 16, 16), padding=1)
    with pytest.raises(MemoryBudgetError, match="the dense 1024 x 1024 matrix"):
        hesse.dense(A, memory="4MiB")
    assert hesse.dense(A, memory="12MiB").shape == (1024, 1024)
    with hesse.memory("1MiB"):
        assert entries_rule(A) is None


def test_a_sparse_system_of_a_sum() -> None:
    """Sums and products of convolutions with other operators of few entries are solved by sparse factors."""
    A = convolution(randn(1, 1, 3, 3), (1, 12, 15), padding=1)
    B = A.T @ A + 0.1 * Identity(A.in_space)
    b = randn(1, 12, 15, seed=4)
    M = hesse.dense(B)
    expected = torch.linalg.solve(M, b.flatten()).reshape(b.shape)
    torch.testing.assert_close(hesse.solve(B, b), expected, rtol=1e-9, atol=1e-9)
    assert entries_rule(convolution(randn(32, 32, 3, 3), (32, 64, 64), padding=1)) is None
