"""What is refused: a small example of each, and the error that it raises."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hesse
from tools.coverage_page.case import Make, Program, build, layer, normal, program, tokens

Loss = Callable[[Any, Any], Tensor]
_x = partial(normal, 5)
_L = partial(nn.Linear, 5, 3)
_MSE = nn.MSELoss()


@dataclass(frozen=True)
class Refusal:
    """A program that has no per-sample gradients, or none that can be had.

    Attributes:
        label: what it does.
        make: the model and its inputs.
        loss: the loss; None for the output Jacobian.
        train: whether the model is in train mode.
    """

    label: str
    make: Make
    loss: Loss | None = _MSE
    train: bool = False


def raised(refusal: Refusal) -> BaseException:
    """The error that an example raises.

    Raises:
        AssertionError: none.
    """
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, inputs = build(refusal.make, torch.float64)
        model.train(refusal.train)
        target = torch.randn(len(inputs[0]), 3, dtype=torch.float64)
        try:
            hesse.parameter_jacobian(model, refusal.loss, (inputs, target)).norms()
        except (hesse.HesseError, RuntimeError) as error:
            return error
    raise AssertionError(f"{refusal.label}: nothing was raised")


def _centered(s: Any, x: Tensor) -> Tensor:
    hidden = s.a(x)
    return hidden - hidden.mean(0)


def _detached_scale(s: Any, x: Tensor) -> Tensor:
    hidden = s.a(x)
    return hidden * hidden.detach().std()


def _reentrant(s: Any, x: Tensor) -> Any:
    return checkpoint(s.b, s.a(x), use_reentrant=True)


def _one(function: Any, **parts: Any) -> Make:
    return program(function, _x, **(parts or {"a": _L}))


def _batch_norm(**options: Any) -> Make:
    return layer(lambda: nn.Sequential(_L(), nn.BatchNorm1d(3, **options)), x=_x)


def _complex() -> tuple[nn.Module, Tensor]:
    model = Program(lambda s, x: (x.to(s.w.dtype) @ s.w).abs())
    model.to = lambda dtype: model  # pyright: ignore - it keeps its own dtype
    model.w = nn.Parameter(torch.randn(5, 3, dtype=torch.complex128))
    return model, _x()


def _nan() -> Tensor:
    x = _x()
    x[2, 1] = torch.nan
    return x


def _routed_with_dropout(s: Any, x: Tensor) -> Tensor:
    chosen, out = x[:, 0] > 0, x.new_zeros(len(x), 3)
    out[chosen] = F.dropout(s.a(x[chosen]), training=s.training)
    return out


REFUSALS = [
    Refusal("`BatchNorm1d` in train mode", _batch_norm(), train=True),
    Refusal("`BatchNorm1d` without running statistics", _batch_norm(track_running_stats=False)),
    Refusal("a mean over the batch inside the model", _one(_centered)),
    Refusal("`softmax` over the batch", _one(lambda s, x: s.a(x).softmax(0))),
    Refusal("a detached statistic of the batch", _one(_detached_scale)),
    Refusal("outputs in another order than inputs", _one(lambda s, x: s.a(x.flip(0)))),
    Refusal("a loss of pairs of samples", _one(lambda s, x: s.a(x)), lambda o, t: torch.cdist(o, t).mean()),
    Refusal("a loss with a statistic of the batch", _one(lambda s, x: s.a(x)), lambda o, t: ((o - o.mean(0)) * t).sum()),
    Refusal("routing by a mask, with dropout in train mode", _one(_routed_with_dropout), train=True),
    Refusal("`Embedding(max_norm=)`", layer(nn.Embedding, 5, 3, max_norm=1.0, x=tokens)),
    Refusal("reentrant checkpointing", _one(_reentrant, a=_L, b=partial(nn.Linear, 3, 3))),
    Refusal("an op without a derivative", _one(lambda s, x: torch.heaviside(s.a(x), s.a(x)) + s.a(x))),
    Refusal("an input that is changed in place after use", _one(lambda s, x: _overwritten(s.a(x)))),
    Refusal("complex parameters", _complex),
    Refusal("NaN in the inputs", program(lambda s, x: s.a(x), _nan, a=_L)),
    Refusal("an output detached from the parameters", _one(lambda s, x: s.a(x).detach())),
    Refusal("a loss detached from the output", _one(lambda s, x: s.a(x)), lambda o, t: (o.detach() - t).square().mean()),
    Refusal("one output for the whole batch", _one(lambda s, x: s.a(x).sum())),
    Refusal("an output that is no tensor", _one(lambda s, x: {"logits": s.a(x)})),
    Refusal("nothing to differentiate by", layer(lambda: _L().requires_grad_(False), x=_x)),
    Refusal("a number for a loss", _one(lambda s, x: s.a(x)), lambda o, t: float((o - t).sum())),  # pyright: ignore
]  # fmt: skip


def _overwritten(hidden: Tensor) -> Tensor:
    square = hidden.exp()
    result = square * square
    square.mul_(2)
    return result
