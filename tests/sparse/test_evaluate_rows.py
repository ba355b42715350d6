"""Rows, where columns cannot be computed or come out otherwise than in reverse mode: beside loops of torch.autograd.grad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hesse.core.errors import StructureError, UnsupportedError
from hesse.sparse import Pattern, coloring, prepare_hessian, prepare_jacobian
from tests.autodiff import one_way

REAL = torch.float64


def point(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=REAL, generator=torch.Generator().manual_seed(seed))


def rows(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        found = [torch.autograd.grad(v, leaf, retain_graph=True)[0].reshape(-1) for v in f(leaf).reshape(-1)]
    return torch.stack(found)


def near(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A Jacobian of 6 x 7 with two entries a row."""
    return lambda x: own(x)[1:] * x[:-1]


PATTERN = Pattern.of(torch.eye(6, 7) + torch.eye(6, 7).roll(1, 1))


@pytest.mark.parametrize("compile", ["replay", "off"])
@pytest.mark.parametrize("kind", [None, "row"])
@pytest.mark.parametrize("name", one_way.FUNCTIONS)
def test_what_autograd_says_of_functions_of_the_users(name: str, kind: Any, compile: Any) -> None:
    f = near(one_way.FUNCTIONS[name])
    prepared = prepare_jacobian(f, point(7), pattern=PATTERN, kind=kind, compile=compile)
    for seed in range(4):
        x = point(7, seed=seed)
        torch.testing.assert_close(prepared(x, layout="dense").jacobian, rows(f, x), rtol=1e-11, atol=1e-11)
    program = prepared._program
    assert program.colored.kind == "row"
    assert ("the backward" in program.note or "ackward through" in program.note) == (kind is None)


@pytest.mark.parametrize("name", one_way.FUNCTIONS)
def test_columns_that_the_user_asked_for_are_refused(name: str) -> None:
    prepared = prepare_jacobian(near(one_way.FUNCTIONS[name]), point(7), pattern=PATTERN, kind="column")
    with pytest.raises(UnsupportedError, match=r"(?s)columns cannot be computed.*kind='row'"):
        prepared(point(7))


def test_a_missing_entry_is_not_taken_for_a_wrong_column() -> None:
    wrong = Pattern.of(torch.eye(6, 7))
    prepared = prepare_jacobian(near(one_way.Once.apply), point(7), pattern=wrong)
    with pytest.raises(StructureError, match="where the pattern gives 0"):
        prepared(point(7))
    assert prepared._program.note == ""


class Layers:
    """Ops that the graph cannot take tangents through, or that PyTorch cannot differentiate twice."""

    @staticmethod
    def batch() -> Any:
        layer = nn.BatchNorm1d(2, dtype=REAL)
        return layer, (5, 2)

    @staticmethod
    def recurrence() -> Any:
        torch.manual_seed(0)
        layer = nn.LSTM(2, 3, dtype=REAL)
        return lambda x: layer(x)[0], (4, 1, 2)

    @staticmethod
    def attention() -> Any:
        torch.manual_seed(0)
        layer = nn.MultiheadAttention(4, 2, dtype=REAL)
        return lambda x: layer(x, x, x, need_weights=False)[0], (3, 1, 4)

    @staticmethod
    def frequencies() -> Any:
        return lambda x: torch.fft.ifft(torch.fft.fft(x) ** 2).real, (5,)

    @staticmethod
    def distances() -> Any:
        return lambda x: torch.cdist(x, x[:2] + 1), (4, 3)


@pytest.mark.parametrize("compile", ["replay", "off"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["batch", "recurrence", "attention", "frequencies", "distances"])
def test_the_function_runs_once_an_evaluation(name: str, grad: bool, compile: Any) -> None:
    own, shape = getattr(Layers, name)()
    runs = 0

    def f(x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        return own(x)

    x = point(*shape)
    with torch.set_grad_enabled(grad):
        prepared = prepare_jacobian(f, x, compile=compile)
        runs, before = 0, getattr(own, "num_batches_tracked", torch.zeros(())).clone()
        prepared(x)
        assert runs == 1
        found = prepared(x, layout="dense").jacobian
        assert runs == 2
        if name == "batch":
            assert own.num_batches_tracked == before + 2
    torch.testing.assert_close(found.detach(), rows(own, x), rtol=1e-9, atol=1e-9)


def test_rows_instead_of_columns_are_differentiable_by_parameters() -> None:
    weight = point(7).requires_grad_()

    def f(x: Tensor) -> Tensor:
        return one_way.one_way_sine(x)[1:] + (x**2 * weight)[:-1]

    prepared = prepare_jacobian(f, point(7), pattern=PATTERN)
    for seed in range(3):
        x = point(7, seed=seed)
        (found,) = torch.autograd.grad(prepared(x, layout="dense").jacobian.sum(), weight)
        torch.testing.assert_close(found[:-1], 2 * x[:-1])
        assert found[-1] == 0
    assert prepared._program.colored.kind == "row"


def test_rows_that_are_given_are_kept() -> None:
    f = near(one_way.Detached.apply)
    given = coloring(PATTERN, kind="row")
    prepared = prepare_jacobian(f, point(7), pattern=given)
    assert prepared._program.colored is given
    torch.testing.assert_close(prepared(point(7), layout="dense").jacobian, rows(f, point(7)))


@pytest.mark.parametrize("name", ["once", "no_grad"])
def test_second_derivatives_that_a_backward_loses_are_refused(name: str) -> None:
    own = one_way.FUNCTIONS[name]

    def f(x: Tensor) -> Tensor:
        return (own(x) * x.roll(1)).sum()

    with pytest.raises(UnsupportedError, match=f"(?s)not symmetric.*the backward of {one_way.NAMES[name]}"):
        prepare_hessian(f, point(7))(point(7))


def test_columns_that_are_nan_where_rows_are_finite() -> None:
    prepared = prepare_jacobian(lambda x: x.logcumsumexp(0), point(5))
    for seed in range(4):
        x = point(5, seed=seed)
        torch.testing.assert_close(prepared(x, layout="dense").jacobian, rows(lambda x: x.logcumsumexp(0), x))
