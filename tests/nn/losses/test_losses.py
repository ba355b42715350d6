"""The losses against loops over samples, and against torch where torch has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import LeafError, StructureError
from hesse.nn.losses import binary_cross_entropy, cross_entropy, interval, least_squares, log_bce, log_multinomial, margin

from ..models.common import F64, generator, normal

close = torch.testing.assert_close
F = torch.nn.functional
REDUCTIONS: list[tuple[Any, Callable[[Tensor], Tensor]]] = [("sum", Tensor.sum), ("mean", Tensor.mean), ("none", Tensor.clone)]


def probabilities(*shape: int, seed: int = 3) -> Tensor:
    return torch.rand(*shape, dtype=F64, generator=generator(seed)) * 0.9 + 0.05


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(x).sum(), [x])
    return g


def same(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor) -> None:
    close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    close(gradient(ours, x), gradient(theirs, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("reduction", "reduce"), REDUCTIONS)
def test_log_multinomial(reduction: Any, reduce: Any) -> None:
    labels, z = torch.tensor([2, 0, 1, 2]), normal(4, 3).log_softmax(1)
    hot, soft = F.one_hot(labels, 3), probabilities(4, 3)
    same(lambda z: log_multinomial(z, hot, reduction=reduction), lambda z: F.nll_loss(z, labels, reduction=reduction), z)
    rows = lambda z: reduce(torch.stack([-sum(z[n, k] * soft[n, k] for k in range(3)) for n in range(4)]))  # noqa: E731
    same(lambda z: log_multinomial(z, soft, reduction=reduction), rows, z)
    close(log_multinomial(z, hot), -(z * hot).sum())


@pytest.mark.parametrize(("reduction", "reduce"), REDUCTIONS)
def test_cross_entropy_normalizes_each_sample(reduction: Any, reduce: Any) -> None:
    labels, z = torch.tensor([2, 0, 1, 2]), normal(4, 3) * 5
    hot, soft = F.one_hot(labels, 3), probabilities(4, 3)

    def loop(targets: Tensor) -> Callable[[Tensor], Tensor]:
        def run(z: Tensor) -> Tensor:
            rows = [-(t * (row - row.exp().sum().log())).sum() for row, t in zip(z, targets, strict=True)]
            return reduce(torch.stack(rows))

        return run

    same(lambda z: cross_entropy(z, labels, reduction=reduction), loop(hot), z)
    same(lambda z: cross_entropy(z, hot, reduction=reduction), loop(hot), z)
    same(lambda z: cross_entropy(z, hot.bool(), reduction=reduction), loop(hot), z)
    same(lambda z: cross_entropy(z, soft, reduction=reduction), loop(soft), z)
    close(cross_entropy(z, labels), loop(hot)(z) if reduction == "sum" else F.cross_entropy(z, labels, reduction="sum"))


def test_cross_entropy_of_one_sample_and_of_images() -> None:
    z = normal(3)
    close(cross_entropy(z, torch.tensor(1)), -z.log_softmax(0)[1])
    close(cross_entropy(z, torch.tensor([0, 1, 0])), -z.log_softmax(0)[1])
    z, labels = normal(2, 3, 4, 5), torch.randint(3, (2, 4, 5), generator=generator())
    close(cross_entropy(z, labels, reduction="none"), -z.log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize(("reduction", "reduce"), REDUCTIONS)
@pytest.mark.parametrize("p", [0.0, 0.01])
def test_log_bce(reduction: Any, reduce: Any, p: float) -> None:
    q, t = probabilities(4, 3), probabilities(4, 3, seed=4)
    theirs = lambda q: reduce(-(t * torch.log(q + p) + (1 - t) * torch.log(1 - q - p)))  # noqa: E731
    same(lambda q: log_bce(q, t, p=p, reduction=reduction), theirs, q)
    if p == 0:
        same(lambda q: log_bce(q, t, reduction=reduction), lambda q: F.binary_cross_entropy(q, t, reduction=reduction), q)


def test_log_bce_of_saturated_predictions() -> None:
    q, t = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=F64), torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=F64)
    close(
        log_bce(q, t, p=1e-3, reduction="none"),
        torch.tensor([-math.log1p(-1e-3), -math.log1p(1e-3), -math.log(1e-3), -math.log(1e-3)], dtype=F64),
    )
    assert gradient(lambda q: log_bce(q, t, p=1e-3), q).isfinite().all()


def test_classes_of_any_integer_type() -> None:
    z, labels = normal(4, 3), torch.tensor([0, 2, 1, 1])
    for dtype in (torch.int32, torch.int16, torch.uint8):
        close(cross_entropy(z, labels.to(dtype)), cross_entropy(z, labels))
    with pytest.raises(LeafError, match=r"torch.float64 \(4,\) for logits \(4, 3\)"):
        cross_entropy(z, labels.double())


@pytest.mark.parametrize(("reduction", "reduce"), REDUCTIONS)
@pytest.mark.parametrize("p", [1e-6, 0.1])
def test_binary_cross_entropy(reduction: Any, reduce: Any, p: float) -> None:
    z, t = normal(4, 3) * 3, probabilities(4, 3)

    def theirs(z: Tensor) -> Tensor:
        q = 1 / (1 + torch.exp(-z)) * (1 - 2 * p) + p
        return reduce(-(t * q.log() + (1 - t) * (1 - q).log()))

    close(binary_cross_entropy(z, t, p=p, reduction=reduction), theirs(z), rtol=1e-9, atol=1e-9)
    close(
        gradient(lambda z: binary_cross_entropy(z, t, p=p, reduction=reduction), z), gradient(theirs, z), rtol=1e-9, atol=1e-9
    )


def test_binary_cross_entropy_far_out() -> None:
    far = torch.tensor([-1000.0, 1000.0], dtype=torch.float32)
    close(binary_cross_entropy(far, torch.tensor([1.0, 0.0]), reduction="none"), torch.full((2,), -math.log(1e-6)))
    wrong, right = torch.tensor([-60.0], dtype=F64), torch.ones(1, dtype=F64)
    near = torch.tensor([-2.0], dtype=F64)
    close(binary_cross_entropy(near, right, p=1e-12), F.binary_cross_entropy_with_logits(near, right, reduction="sum"))
    assert gradient(lambda z: binary_cross_entropy(z, right), wrong).abs() < 1e-15


@pytest.mark.parametrize(("reduction", "reduce"), REDUCTIONS)
def test_least_squares(reduction: Any, reduce: Any) -> None:
    y, t = normal(4, 3), normal(4, 3, seed=5)
    same(lambda y: least_squares(y, t, reduction=reduction), lambda y: F.mse_loss(y, t, reduction=reduction), y)
    close(least_squares(y, t), sum((y[n, k] - t[n, k]) ** 2 for n in range(4) for k in range(3)))


@pytest.mark.parametrize("width", [1.0, 0.3])
def test_margin_over_all_pairs(width: float) -> None:
    s, t = normal(3, 4), torch.tensor([[1, 0, 0, 1], [0, 1, 2, 0], [2, 0, 1, 0]])

    def pairs(s: Tensor) -> Tensor:
        positive, negative = s[t == 1], s[t == 0]
        return torch.stack([torch.clamp(width - (p - n), min=0) for p in positive for n in negative])

    same(lambda s: margin(s, t, margin=width), lambda s: pairs(s).sum(), s)
    same(lambda s: margin(s, t, margin=width, reduction="mean"), lambda s: pairs(s).mean(), s)
    table = margin(s, t, margin=width, reduction="none")
    assert table.shape == (12, 12)
    close(table[(t == 1).flatten()][:, (t == 0).flatten()].flatten(), pairs(s))
    close(table.sum(), pairs(s).sum())
    by_row = torch.vmap(lambda s, t: margin(s, t, margin=width))(s, t)
    close(by_row[0], sum((width - (s[0, p] - s[0, n])).clamp(min=0) for p in (0, 3) for n in (1, 2)))


def test_margin_of_scores_masked_with_infinity() -> None:
    s, t = torch.tensor([1.0, 0.5, -math.inf], dtype=F64), torch.tensor([1, 0, 2])
    close(margin(s, t), torch.tensor(0.5, dtype=F64))
    close(gradient(lambda s: margin(s, t), s), torch.tensor([-1.0, 1.0, 0.0], dtype=F64))


def test_margin_without_a_pair() -> None:
    s = normal(4)
    for reduction in ("sum", "mean"):
        close(margin(s, torch.ones(4), reduction=reduction), torch.tensor(0.0, dtype=F64))
    close(margin(s, torch.tensor([1.0, 0.0, 0.0, 1.0])), margin(s, torch.tensor([True, False, False, True])))


POINTS = torch.tensor([-2.0, -1.0, -0.25, 0.0, 1.5, 2.0, 3.5], dtype=F64)


@pytest.mark.parametrize(
    ("kind", "values", "slopes"),
    [
        ("hinge", [1.0, 0, 0, 0, 0, 0, 1.5], [-1.0, 0, 0, 0, 0, 0, 1]),
        ("quadratic", [1.0, 0, 0, 0, 0, 0, 2.25], [-2.0, 0, 0, 0, 0, 0, 3]),
    ],
)
def test_interval(kind: Any, values: list[float], slopes: list[float]) -> None:
    wanted, slope = torch.tensor(values, dtype=F64), torch.tensor(slopes, dtype=F64)
    close(interval(POINTS, -1, 2.0, kind=kind, reduction="none"), wanted, rtol=0, atol=0)
    close(interval(POINTS, -1, 2.0, kind=kind), wanted.sum())
    close(interval(POINTS, -1, 2.0, kind=kind, reduction="mean"), wanted.mean())
    close(gradient(lambda y: interval(y, -1, 2.0, kind=kind), POINTS), slope, rtol=0, atol=0)
    below = torch.where(POINTS < 0, wanted, 0.0)
    close(interval(POINTS, -1, None, kind=kind, reduction="none"), below)
    close(interval(POINTS, -1, math.inf, kind=kind, reduction="none"), below)
    close(gradient(lambda y: interval(y, -1, math.inf, kind=kind), POINTS), torch.where(POINTS < 0, slope, 0.0))
    close(interval(POINTS, None, 2, kind=kind, reduction="none"), wanted - below)


def test_interval_with_a_bound_for_each_prediction() -> None:
    low, high = POINTS - 1, POINTS + torch.tensor([-0.5, 1, 1, 1, 1, 1, -0.25], dtype=F64)
    close(interval(POINTS, low, high, reduction="none"), torch.tensor([0.5, 0, 0, 0, 0, 0, 0.25], dtype=F64))
    batch = normal(4, 3)
    row = torch.tensor([0.0, 0.5, -0.5], dtype=F64)
    close(interval(batch, row, None), (row - batch).clamp(min=0).sum())


def test_descent_on_the_interval_loss_ends_inside() -> None:
    y = POINTS.clone()
    for _ in range(60):
        y = y - 0.2 * gradient(lambda y: interval(y, -1, 2, kind="quadratic"), y)
    close(y, POINTS.clamp(-1, 2), atol=1e-9, rtol=0)


def test_messages() -> None:
    y = normal(4, 3)
    for loss in (log_multinomial, log_bce, binary_cross_entropy, least_squares, margin):
        with pytest.raises(StructureError, match="one shape"):
            loss(y, normal(4, 1))
        with pytest.raises(StructureError, match="'some'"):
            loss(y.sigmoid(), y.sigmoid(), reduction="some")  # type: ignore[arg-type]
    with pytest.raises(StructureError, match="'some'"):
        cross_entropy(y, torch.zeros(4, dtype=torch.int64), reduction="some")  # type: ignore[arg-type]
    with pytest.raises(LeafError, match="int64"):
        interval(torch.arange(3), 0, 1)
    with pytest.raises(StructureError, match="low=2, high=1"):
        interval(y, 2, 1)
    with pytest.raises(StructureError, match="neither"):
        interval(y, None, None)
    with pytest.raises(StructureError, match="broadcast"):
        interval(normal(3), normal(4, 3), None)
    with pytest.raises(StructureError, match="'cubic'"):
        interval(y, 0, 1, kind="cubic")  # type: ignore[arg-type]
