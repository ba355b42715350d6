"""Copies of operators that hold graphs read what the original reads; pickling them is refused by type."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.core.errors import DataError, UnsupportedError
from hesse.operators import Average, Dense, LinearOperator

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
LOSS = nn.CrossEntropyLoss()


def batch(count: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3), torch.arange(count) % 2


def twice(make: Callable[[Any], LinearOperator]) -> Callable[[], LinearOperator]:
    return lambda: hesse.average(make, [batch(), batch(3)])


OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "rows": lambda: hesse.parameter_jacobian(MODEL, LOSS, batch()),
    "transposed rows": lambda: hesse.parameter_jacobian(MODEL, LOSS, batch()).T,
    "some rows": lambda: hesse.parameter_jacobian(MODEL, LOSS, batch()).select([0, 2]),
    "rows of a data set": lambda: hesse.parameter_jacobian(MODEL, LOSS, [batch(), batch(3)]),
    "jacobian": lambda: hesse.linearize(lambda x: x.sin() * x.sum(), torch.randn(3)).jacobian,
    "hessian": lambda: hesse.hessian_operator(lambda x: x.sin().prod(), torch.randn(3)),
    "loss hessian": lambda: hesse.loss_hessian(MODEL, LOSS, batch()),
    "ggn of a data set": lambda: hesse.ggn(MODEL, LOSS, [batch(), batch(3)]),
    "damped ggn": lambda: damped(hesse.ggn(MODEL, LOSS, batch())),
    "empirical fisher": lambda: hesse.fisher(MODEL, LOSS, batch(), kind="empirical"),
    "average": twice(lambda pair: hesse.ggn(MODEL, LOSS, pair)),
    "input hessian": lambda: hesse.input_hessian(MODEL, LOSS, batch()),
}


def damped(A: LinearOperator) -> LinearOperator:
    return A + 0.1 * hesse.identity(A.in_space)


@pytest.mark.parametrize("name", OPERATORS)
def test_copies_give_the_same_products_and_pickling_is_refused(name: str) -> None:
    A = OPERATORS[name]()
    v = A.in_space.normal(generator=torch.Generator().manual_seed(1))
    for B in (copy.copy(A), copy.deepcopy({"held": [A]})["held"][0]):
        assert B is not A and type(B) is type(A)
        assert torch.equal(B.out_space.ravel(B @ v), A.out_space.ravel(A @ v))
    for write in (pickle.dumps, lambda operator: torch.save(operator, io.BytesIO())):
        with pytest.raises(UnsupportedError, match=r"(?s)operator of the class \w+ is refused.*make it again.*to_zarr"):
            write(A)


def test_a_copy_is_refused_where_the_original_is() -> None:
    model = copy.deepcopy(MODEL)
    A = hesse.ggn(model, LOSS, batch())
    B = copy.deepcopy(A)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    for operator in (A, B):
        with pytest.raises(DataError, match="changed in place"):
            _ = operator @ A.in_space.normal()


def test_kronecker_factors_and_averages_of_importable_functions_are_pickled() -> None:
    K = hesse.kfac(MODEL, LOSS, batch(), kind="expected")
    mean = Average(Dense, [torch.eye(3), torch.full((3, 3), 2.0)])
    for A in (K, mean):
        B, v = pickle.loads(pickle.dumps(A)), A.in_space.normal()
        torch.testing.assert_close(B.out_space.ravel(B @ v), A.out_space.ravel(A @ v))


@pytest.mark.parametrize("options", [{}, {"keep": False}, {"data_check": False}])
def test_a_pickled_average_reads_its_own_model_and_data(options: dict[str, bool]) -> None:
    A = Average(functools.partial(hesse.ggn, MODEL, LOSS), [batch(), batch(3)], **options)
    v = A.in_space.normal()
    product = A.in_space.ravel(A @ v)
    B = pickle.loads(pickle.dumps(A))
    for _ in range(2):
        torch.testing.assert_close(B.in_space.ravel(B @ v), product)
    B.data.make.args[0][0].weight.detach().add_(1)
    with pytest.raises(DataError, match="make a new operator"):
        B @ v
    torch.testing.assert_close(A.in_space.ravel(A @ v), product)


def test_a_kernel_is_copied_with_its_rows() -> None:
    K = hesse.ntk(MODEL, batch()[0])
    for kernel in (K, copy.deepcopy(K)):
        assert kernel.left is kernel.right
        torch.testing.assert_close(kernel.tensor(), K.tensor())
    with pytest.raises(UnsupportedError, match="DataJacobian"):
        pickle.dumps(K)
