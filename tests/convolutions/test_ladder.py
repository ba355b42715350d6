"""Which way is taken, what happens where an answer does not pass, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from hesse.convolutions import ladder
from hesse.convolutions.factory import convolution
from hesse.convolutions.inverse import Applied, Inverse
from hesse.convolutions.operator import Convolution
from hesse.core.errors import MemoryBudgetError, NonFiniteError, NotConvergedError, StructureError

REAL = torch.float64


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=REAL, generator=torch.Generator().manual_seed(7))


def identity_like(channels: int, noise: float) -> torch.Tensor:
    weight = noise * randn(channels, channels, 3, 3) / (3 * channels**0.5)
    weight[..., 1, 1] += torch.eye(channels, dtype=REAL)
    return weight


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("weight", "size", "options", "method"),
    [
        (randn(5, 3, 1, 1), (3, 40, 40), {}, "patches"),
        (randn(12, 3, 2, 2), (3, 40, 40), {"stride": 2}, "patches"),
        (randn(3, 3, 3, 3), (3, 40, 40), {"padding": 1, "padding_mode": "circular"}, "circular"),
        (randn(3, 3, 3, 3), (3, 8, 8), {"padding": 1}, "dense"),
        (randn(3, 3, 3, 3), (3, 40, 40), {"padding": 1}, "boundary"),
        (identity_like(16, 0.3), (16, 64, 64), {"padding": 1}, "krylov"),
    ],
)
def test_the_cheapest_way(weight: torch.Tensor, size: tuple[int, ...], options: dict[str, Any], method: str) -> None:
    A = convolution(weight, size, **options)
    found = ladder.inverse(A)
    assert found.method == method
    x = A.in_space.normal(1, generator=torch.Generator().manual_seed(2))
    y = A @ x
    solved = found.apply(y)
    assert not solved.trouble
    assert float(torch.linalg.vector_norm(A @ solved.value - y)) <= 1e-12 * float(torch.linalg.vector_norm(y))


class Wrong(Inverse):
    """An inverse that is not."""

    method = "wrong"

    def __init__(self, A: Convolution) -> None:
        self.convolution = A

    def apply(self, Y: torch.Tensor, *, adjoint: bool = False) -> Applied:
        g = self.convolution.geometry
        return Applied(torch.ones(len(Y), *(g.out_shape if adjoint else g.in_shape), dtype=Y.dtype))

    def norm(self) -> float:
        return 3.0

    def condition(self) -> float:
        return 1.0


def test_an_answer_that_does_not_pass_is_computed_by_the_next_way() -> None:
    A = convolution(randn(3, 3, 3, 3), (3, 8, 8), padding=1)
    found = ladder.Laddered(A, [("wrong", lambda: Wrong(A)), ("dense", lambda: ladder.inverse(A, method="dense"))], None)
    assert found.method == "wrong"
    y = A.out_space.normal(2, generator=torch.Generator().manual_seed(2))
    x = found.apply(y).value
    assert found.method == "dense"
    assert float(torch.linalg.vector_norm(A @ x - y)) <= 1e-10 * float(torch.linalg.vector_norm(y))


def test_the_last_way_raises() -> None:
    A = convolution(randn(3, 3, 3, 3), (3, 8, 8), padding=1)
    found = ladder.Laddered(A, [("wrong", lambda: Wrong(A)), ("none", lambda: None)], None)
    with pytest.raises(NotConvergedError, match=r"(?s)passes its certificate.*wrong: "):
        found.apply(A.out_space.normal(1))


def test_a_way_beyond_the_budget_is_passed_over() -> None:
    A = convolution(randn(3, 3, 3, 3), (3, 8, 8), padding=1)

    def greedy() -> Inverse:
        raise MemoryBudgetError("It needs memory.", "much", "more")

    found = ladder.Laddered(A, [("greedy", greedy), ("dense", lambda: ladder.inverse(A, method="dense"))], None)
    assert found.method == "dense"
    with pytest.raises(MemoryBudgetError, match="It needs memory"):
        ladder.Laddered(A, [("greedy", greedy)], None)


def test_images_that_are_not_finite_leave_no_trace() -> None:
    A = convolution(randn(3, 2, 3, 3), (2, 7, 6), padding=1)
    found = ladder.inverse(A)
    for number in (torch.nan, torch.inf):
        with pytest.raises(NonFiniteError):
            found.apply(A.out_space.normal(1) * number)
    assert found.method == "dense"


def test_a_block_that_no_way_answers_leaves_the_way_in_use() -> None:
    A = convolution(randn(3, 3, 3, 3), (3, 8, 8), padding=1)
    found = ladder.Laddered(A, [("wrong", lambda: Wrong(A)), ("worse", lambda: Wrong(A))], None)
    first = found.current
    with pytest.raises(NotConvergedError):
        found.apply(A.out_space.normal(1))
    assert found.current is first


def test_inverses_can_be_pickled() -> None:
    A = convolution(randn(3, 3, 3, 3), (3, 8, 8), padding=1)
    y = A.out_space.normal(1)
    found = ladder.inverse(A)
    copy = pickle.loads(pickle.dumps(found))
    assert torch.equal(copy.apply(y).value, found.apply(y).value)


def test_a_boundary_beyond_the_budget_is_named_where_nothing_else_helped() -> None:
    """What was not tried for want of memory is what would have done."""
    A = convolution(randn(4, 4, 3, 3), (4, 32, 32), padding=1)
    y = A @ A.in_space.normal(1)
    with pytest.raises(MemoryBudgetError, match=r"(?s)260 unknowns.*krylov: .*hesse\.memory\(1622400\)") as caught:
        ladder.inverse(A, memory=1_200_000).apply(y)
    assert caught.value.least == 1_622_400
    assert not ladder.inverse(A, memory="64MB").apply(y).trouble


def test_options_are_checked() -> None:
    A = convolution(randn(3, 3, 3, 3), (3, 8, 8), padding=1)
    with pytest.raises(StructureError, match="method='fft'"):
        ladder.inverse(A, method="fft")
    with pytest.raises(StructureError, match="does not apply"):
        ladder.inverse(A, method="circular")
    with pytest.raises(NonFiniteError):
        ladder.inverse(convolution(torch.full((1, 1, 3), torch.nan, dtype=REAL), (1, 8)))
