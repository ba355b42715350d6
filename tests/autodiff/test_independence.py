"""The proof that rows are independent finds every ordered pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hesse.autodiff.independence import batch_size, require_independent_rows
from hesse.autodiff.recording import record
from hesse.core.errors import MixedSamplesError, NonFiniteError, StructureError, UnsupportedError

from .programs import REAL, seeded


def prove(f: Callable[..., object], x: object, chunk: int = 3) -> int:
    return require_independent_rows(record(f, x, "A proof."), "A proof.", chunk)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 20])
def test_every_ordered_pair_is_found(n: int) -> None:
    x = seeded(n, 2)
    assert prove(torch.sin, x) == n
    for source in range(n):
        for target in range(n):
            if source == target:
                continue

            def f(t: Tensor, source: int = source, target: int = target) -> Tensor:
                y = t.sin()
                y[target, 1] += 1e-8 * t[source, 0]
                return y

            with pytest.raises(MixedSamplesError, match=f"row {source} of x") as caught:
                prove(f, x)
            sources = str(caught.value).split("[")[1].split("]")[0].split(", ")
            assert str(target) in sources or len(sources) == 4


def test_the_mixing_op_is_named() -> None:
    with pytest.raises(MixedSamplesError, match="batch normalization in train mode"):
        prove(nn.BatchNorm1d(2, dtype=REAL), seeded(5, 2))
    assert prove(nn.BatchNorm1d(2, dtype=REAL).eval(), seeded(5, 2)) == 5


@pytest.mark.parametrize("f", [lambda t: t - t.mean(0), lambda t: t.flip(0), lambda t: t.cumsum(0), lambda t: t.softmax(0)])
def test_common_mixtures(f: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(MixedSamplesError):
        prove(f, seeded(6, 2))


def test_each_leaf_is_looked_at() -> None:
    x = {"a": seeded(4, 2), "b": seeded(4, seed=1)}
    assert prove(lambda p: (p["a"] * p["b"][:, None], p["b"]), x) == 4
    with pytest.raises(MixedSamplesError):
        prove(lambda p: (p["a"], p["b"].flip(0)), x)


def test_shapes_without_a_common_batch() -> None:
    for f, x, name in [
        (torch.sum, seeded(3, 2), "the value"),
        (lambda t: t[:2], seeded(3, 2), "the value"),
        (torch.sin, torch.ones((), dtype=REAL), "x"),
        (lambda p: p["a"], {"a": seeded(3, 2), "b": seeded(2, 2)}, "b"),
    ]:
        with pytest.raises(StructureError, match=f"'{name}'"):
            batch_size(record(f, x, ""), "")
    with pytest.raises(StructureError, match="size 0"):
        batch_size(record(torch.sin, torch.zeros(0, 2), ""), "")


def test_nan_is_not_called_a_mixture() -> None:
    with pytest.raises(NonFiniteError, match="NaN in the derivative"):
        prove(lambda t: torch.where(t > 10, t.sqrt(), t), torch.zeros(3, 2) - 1)


def test_inside_transforms() -> None:
    x = seeded(5, 2)
    torch.testing.assert_close(torch.func.grad(lambda t: (prove(torch.sin, t) * t).sum())(x), torch.full_like(x, 5))
    with pytest.raises(UnsupportedError, match="vmap"):
        torch.func.vmap(lambda t: t * prove(torch.sin, t))(seeded(3, 5, 2))
