"""A second run of a function changes nothing but what it makes itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hesse.autodiff.second_run import TraceError, without_trace

BUFFER = torch.zeros(3)
NORM, EVALUATING = nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval()
GENERATOR = torch.Generator().manual_seed(5)


def state() -> list[Tensor]:
    buffers = [BUFFER, *NORM.buffers()]
    return [*(b.clone() for b in buffers), torch.get_rng_state(), GENERATOR.get_state()]


def swallowing(x: Tensor) -> Tensor:
    with contextlib.suppress(Exception):
        BUFFER.add_(1)
    return x


@pytest.mark.parametrize(
    "f",
    [
        lambda x: BUFFER.add_(1) * x,
        lambda x: BUFFER[1:].mul_(2) * x[1:],
        lambda x: torch.add(x, 1, out=BUFFER),
        lambda x: BUFFER.copy_(x),
        lambda x: NORM(x.expand(4, 3)),
        lambda x: nn.functional.dropout(x, 0.5),
        lambda x: x + torch.rand(3),
        lambda x: x + torch.rand(3, generator=GENERATOR),
        lambda x: x.clone().normal_(generator=GENERATOR),
        lambda x: x.mul_(2),
        lambda x: BUFFER.index_put_((torch.tensor([1]),), x[:1]),
        swallowing,
    ],
)
def test_what_would_leave_a_trace_is_stopped_before_it_does(f: Callable[[Tensor], Tensor]) -> None:
    x = torch.arange(3.0)
    before = [*state(), x.clone()]
    with pytest.raises(TraceError):
        without_trace(f)(x)
    for old, new in zip(before, [*state(), x], strict=True):
        assert torch.equal(old, new)


def writing_to_its_own(x: Tensor) -> Tensor:
    own = x.clone()
    own[1:].mul_(2)
    own += 1
    parts = torch.zeros(2).fill_(3).split(1)
    parts[0].add_(1)
    return own.sum() + torch.cat(parts).sum()


@pytest.mark.parametrize("f", [writing_to_its_own, EVALUATING, lambda x: torch.linalg.qr(x.expand(3, 3) + torch.eye(3)).R])
def test_everything_else_runs(f: Callable[[Tensor], Tensor]) -> None:
    x = torch.arange(3.0).expand(2, 3) if f is EVALUATING else torch.arange(3.0)
    assert torch.equal(without_trace(f)(x), f(x))
