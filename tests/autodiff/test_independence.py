"""The proof that rows are independent finds every ordered pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.autodiff import independence
from hesse.autodiff.independence import batch_size, require_independent_rows
from hesse.autodiff.recording import Recording, record
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


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph is large enough for a run that is followed."""
    monkeypatch.setattr(independence, "_PROBED_BYTES", 1)


def follows(f: Callable[..., object], x: object, *, twice: bool = False) -> bool:
    return independence.what_mixes_rows(record(f, x, "A proof."), "A proof.", twice=twice) is None


@pytest.mark.usefixtures("always")
def test_rows_are_followed_through_networks() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(2, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)).to(REAL)
    assert follows(network, seeded(4, 2, 5))
    assert follows(network, seeded(4, 2, 5), twice=True)
    assert not follows(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False).to(REAL), network), seeded(4, 2, 5))
    assert follows(nn.Sequential(nn.BatchNorm1d(2).to(REAL).eval(), network), seeded(4, 2, 5))
    assert not follows(lambda t: t[torch.tensor([0, 1, 3, 2])], seeded(4, 2))
    assert not follows(lambda t: t if t.sum() > 0 else t.flip(0), seeded(4, 2))


@pytest.mark.usefixtures("always")
def test_rows_that_meet_at_another_point_only_are_not_called_independent() -> None:
    def f(t: Tensor) -> Tensor:
        return t + torch.relu(t.sum(0) - 1e3)

    assert not follows(f, seeded(5, 2))
    assert prove(f, seeded(5, 2)) == 5  # at this point they are


@pytest.mark.usefixtures("always")
def test_a_run_that_leaves_traces_is_not_repeated() -> None:
    counter = torch.zeros(())

    def f(t: Tensor) -> Tensor:
        counter.add_(1)
        return t.sin()

    assert not follows(f, seeded(5, 2))
    assert float(counter) == 1


class Twisted(torch.autograd.Function):
    """Its first derivative keeps rows apart, its second one does not."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        ctx.save_for_backward(t)
        return t.sin()

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        (t,) = ctx.saved_tensors
        return g[0] * t.flip(0).cos()


@pytest.mark.usefixtures("always")
def test_second_derivatives_of_custom_functions_are_probed() -> None:
    assert follows(Twisted.apply, seeded(4, 2))
    assert not follows(Twisted.apply, seeded(4, 2), twice=True)
    with pytest.raises(MixedSamplesError):
        hesse.hessian(lambda t: Twisted.apply(t).sum(1), seeded(4, 2), structure="batched")  # pyright: ignore


def test_a_large_graph_is_followed_and_a_small_one_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    probes, original = [], Recording.pull
    monkeypatch.setattr(Recording, "pull", lambda self, *a, **k: (probes.append(1), original(self, *a, **k))[1])
    weight = seeded(8, 64)
    large = seeded(2000, 8)
    found = hesse.jacobian(lambda t: torch.tanh(t @ weight)[:, :1], large, structure="batched", mode="reverse").jacobian
    assert len(probes) == 1  # the row of each sample; no probe
    torch.testing.assert_close(found[:, 0], (1 - torch.tanh(large @ weight[:, :1]) ** 2) * weight[:, 0])
    probes.clear()
    hesse.jacobian(lambda t: torch.tanh(t @ weight)[:, :1], large[:5], structure="batched", mode="reverse")
    assert len(probes) > 1
    with pytest.raises(MixedSamplesError, match="rows change their places"):
        hesse.jacobian(lambda t: torch.tanh(t @ weight).flip(0), large, structure="batched")
    with pytest.raises(MixedSamplesError, match=r"mean.*test_independence.py"):
        hesse.jacobian(lambda t: torch.tanh(t @ weight).sub(t.mean(0)[0]), large, structure="batched")


def test_without_a_run_where_none_is_possible(always: None) -> None:
    inside = []
    torch.func.grad(lambda t: (inside.append(follows(torch.sin, t)), t.sum())[1])(seeded(5, 2))
    assert inside == [False]
