"""Determinants of convolutions, against torch.linalg.slogdet of the matrix that PyTorch's own convolution makes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.convolutions.questions.determinant import log_determinant
from hesse.core.errors import MemoryBudgetError, StructureError
from hesse.linalg.slogdet import slogdet
from tests.convolutions.dense_oracle import CASES, Case

LARGER = (
    Case("2-D zeros", (2, 2, 3, 3), (2, 13, 14), {"padding": 1}),
    Case("2-D reflect", (3, 3, 3, 3), (3, 11, 12), {"padding": 1, "padding_mode": "reflect"}),
    Case("2-D replicate 5x3", (2, 2, 5, 3), (2, 13, 14), {"padding": (2, 1), "padding_mode": "replicate"}),
    Case("circular", (2, 2, 3, 3), (2, 13, 14), {"padding": 1, "padding_mode": "circular"}),
    Case("circular strided", (8, 2, 3, 3), (2, 14, 12), {"padding": 1, "padding_mode": "circular", "stride": 2}),
    Case("groups", (6, 3, 3), (6, 131), {"padding": 1, "groups": 2}),
    Case("strided", (4, 2, 4), (2, 200), {"padding": 1, "stride": 2}),
    Case("dilated", (3, 3, 3), (3, 120), {"padding": 2, "dilation": 2}),
    Case("complex", (3, 3, 3), (3, 110), {"padding": 1}, torch.complex128),
    Case("3-D", (2, 2, 3, 3, 1), (2, 6, 6, 5), {"padding": (1, 1, 0)}),
)
SQUARE = [case for case in CASES if "square" in case.name or case.name in ("circular", "groups dilated", "dilated")] + list(
    LARGER
)


def weights(case: Case) -> Tensor:
    """Not far from an identity where it can be, so that derivatives are not those of a nearly singular matrix."""
    weight = case.weight(4)
    weight = weight / weight[0].numel() ** 0.5
    center = tuple(side // 2 for side in weight.shape[2:])
    if not case.options.get("stride"):
        for channel in range(len(weight)):
            weight[(channel, channel % weight.shape[1], *center)] += 2
    return weight


@pytest.mark.sampled(7)
@pytest.mark.parametrize("case", SQUARE, ids=str)
def test_the_determinant_is_that_of_the_matrix(case: Case) -> None:
    weight = weights(case)
    A, M = case.operator(weight), case.matrix(weight)
    sign, logabs = torch.linalg.slogdet(M)
    for found in (log_determinant(A), log_determinant(A.T), slogdet(A), slogdet(A.T)):
        assert abs(float(found.logabs) - float(logabs)) <= 1e-9 * max(1, abs(float(logabs)))
        assert abs(complex(found.sign) - complex(sign)) <= 1e-8


@pytest.mark.parametrize("case", SQUARE, ids=str)
def test_its_gradient_is_that_of_the_matrix(case: Case) -> None:
    weight = weights(case).requires_grad_()
    (found,) = torch.autograd.grad(log_determinant(case.operator(weight)).logabs, weight, create_graph=True)
    (expected,) = torch.autograd.grad(torch.linalg.slogdet(case.matrix(weight)).logabsdet, weight, create_graph=True)
    assert float((found - expected).detach().norm()) <= 1e-7 * float(expected.detach().norm())
    probe = torch.randn_like(expected)
    if case in LARGER[2:] and case.name != "strided":
        return  # the Hessian of the matrix's determinant takes long
    (found,) = torch.autograd.grad((found * probe).real.sum(), weight)
    (expected,) = torch.autograd.grad((expected * probe).real.sum(), weight)
    assert float((found - expected).norm()) <= 1e-6 * float(expected.norm())


def test_a_singular_one_has_sign_zero() -> None:
    case = Case("box", (1, 1, 3), (1, 5), {"padding": 1})
    found = log_determinant(case.operator(torch.ones(1, 1, 3, dtype=torch.float64)))
    matrix = case.matrix(torch.ones(1, 1, 3, dtype=torch.float64))
    assert torch.linalg.matrix_rank(matrix) == 4
    assert float(found.logabs) < -30


def test_float32_is_found_in_double_precision() -> None:
    for case in (SQUARE[0], *LARGER[:2], LARGER[3]):
        weight = weights(case).float()
        exact = torch.linalg.slogdet(case.matrix(weight.double())).logabsdet
        assert abs(float(log_determinant(case.operator(weight)).logabs - exact)) <= 1e-9 * abs(float(exact))


def test_bad_input() -> None:
    tall = CASES[1]
    with pytest.raises(StructureError, match="square"):
        log_determinant(tall.operator(tall.weight()))
    small = Case("valid", (4, 1, 2, 2), (1, 6, 6), {"stride": 2})
    with pytest.raises(MemoryBudgetError, match="matrix of"):
        log_determinant(small.operator(small.weight()), memory=1000)
