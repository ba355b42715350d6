"""Products with many vectors at once, beside dense Jacobians."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hesse.autodiff.products import pull_many, push_many
from hesse.autodiff.push_rules import NoPushError
from hesse.autodiff.recording import record

REAL = torch.float64


def point(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=REAL, generator=torch.Generator().manual_seed(0))


class OneAtATime(torch.autograd.Function):
    """A backward that reads a number of its cotangent, which cannot be batched."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        assert float(grads[0].sum()) < 1e9
        return 3 * grads[0]


def through_a_checkpoint(x: Tensor) -> Tensor:
    return checkpoint(lambda t: (t[1:] * t[:-1]).sin(), x, use_reentrant=False)


CASES = {
    "slices": lambda x: torch.cat([x[1:] * x[:-1], x[:2].exp()]),
    "matrix": lambda x: (x[:4].view(2, 2) @ x[:4].view(2, 2).t()).view(-1),
    "one at a time": lambda x: OneAtATime.apply(x) ** 2,
    "checkpoint": through_a_checkpoint,
    "linear": lambda x: 2 * x,
}


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_columns_and_rows(name: str, careful: bool) -> None:
    f, x = CASES[name], point(6)
    leaf = x.clone().requires_grad_()
    y = f(leaf)
    exact = torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in y])
    recording = record(f, x, "a test")
    V, U = point(3, 6), point(2, len(y))
    torch.testing.assert_close(push_many(recording, [V], careful=careful)[0], V @ exact.T)
    torch.testing.assert_close(pull_many(recording, [U])[0], U @ exact)


def test_differentiable_where_something_upstream_is() -> None:
    weight = point(5).requires_grad_()
    recording = record(lambda x: x[1:] * x[:-1] * weight, point(6), "a test")
    V = point(3, 6)
    (found,) = torch.autograd.grad(push_many(recording, [V])[0].sum(), weight, retain_graph=True)
    x = point(6)
    torch.testing.assert_close(found, (V[:, 1:] * x[:-1] + x[1:] * V[:, :-1]).sum(0))
    (found,) = torch.autograd.grad(pull_many(recording, [torch.eye(5, dtype=REAL)])[0].sum(), weight)
    torch.testing.assert_close(found, x[1:] + x[:-1])


def counted(f: Any) -> tuple[Any, list[int]]:
    runs = [0]

    def wrapped(x: Tensor) -> Tensor:
        runs[0] += 1
        return f(x)

    return wrapped, runs


@pytest.mark.parametrize("attached", [False, True])
def test_columns_do_not_run_the_function_again(attached: bool) -> None:
    scale = torch.ones(3, dtype=REAL, requires_grad=attached)
    batch = torch.nn.BatchNorm1d(3, dtype=REAL, affine=False)
    f, runs = counted(lambda x: torch.fft.ifft(torch.fft.fft(batch(x.view(4, 3) * scale), dim=0) ** 2, dim=0).real.reshape(-1))
    x, V = point(12), point(2, 12)
    recording = record(f, x, "a test")
    found = push_many(recording, [V])[0]
    assert runs == [1]
    assert found.requires_grad == attached
    leaf = x.clone().requires_grad_()
    exact = torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in f(leaf)])
    torch.testing.assert_close(found.detach(), V @ exact.T)


def test_columns_that_are_differentiable_by_something_upstream_and_cannot_be_batched() -> None:
    weight, x, V = point(6).requires_grad_(), point(6), point(3, 6)
    recording = record(lambda t: OneAtATime.apply(t * weight) ** 2, x, "a test")
    (found,) = torch.autograd.grad(push_many(recording, [V])[0].sum(), weight)
    torch.testing.assert_close(found, (36 * weight * x * V).sum(0).detach())


def test_columns_through_distances_are_refused() -> None:
    recording = record(lambda x: torch.cdist(x, x[:2] + 1), point(5, 3), "a test")
    with pytest.raises(NoPushError, match="_cdist_backward"):
        push_many(recording, [point(2, 5, 3)])
