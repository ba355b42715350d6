"""A case: a small model with its inputs, run through `hesse.parameter_jacobian` and compared with a loop over samples."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hesse
from hesse.rules.layers import layer_rules

COUNT = 4
NO_FORM = "none"
Inputs = Tensor | tuple[Tensor, ...]
Make = Callable[[], tuple[nn.Module, Inputs]]


@dataclass(frozen=True)
class Case:
    """A model to measure.

    Attributes:
        label: the layer and its options, in Markdown.
        make: the model and its inputs, in any dtype.
        dtype: what both are run in; the loop over samples runs in float64 always.
        tolerance: a larger error than this is no rounding.
    """

    label: str
    make: Make
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-12


@dataclass(frozen=True)
class Found:
    """What a case showed.

    Attributes:
        label: the case's.
        paths: name of a parameter -> path.
        forms: node in which a weight met data -> the kinds of forms that its rule returned, `NO_FORM` where
            it declined; empty if there is no rule or it was not asked.
        error: of all rows together or of their norms, whichever is larger, relative to the 2-norm of the loop's.
    """

    label: str
    paths: dict[str, str]
    forms: dict[str, set[str]]
    error: float


class Program(nn.Module):
    """A model made of a function of itself and its inputs, and of parts."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def P(*shape: int) -> nn.Parameter:
    """A parameter of normal numbers."""
    return nn.Parameter(torch.randn(shape))


def normal(*shape: int) -> Tensor:
    """Inputs: normal numbers, ``[COUNT, *shape]``."""
    return torch.randn(COUNT, *shape)


def tokens(*shape: int, below: int = 5) -> Tensor:
    """Inputs: tokens, ``[COUNT, *shape]``."""
    return torch.randint(below, (COUNT, *shape))


def layer(cls: Callable[..., nn.Module], *args: Any, x: Callable[[], Inputs], **options: Any) -> Make:
    """A case of one layer on its inputs."""
    return lambda: (cls(*args, **options), x())


def program(function: Callable[..., Any], x: Callable[[], Inputs], **parts: Callable[[], Any]) -> Make:
    """A case of a `Program`."""
    return lambda: (Program(function, **{name: part() for name, part in parts.items()}), x())


def measure(case: Case) -> Found:
    """Run a case.

    Raises:
        AssertionError: rows or norms differ from the loop's by more than rounding.
    """
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, inputs = build(case.make, case.dtype)
        exact = model if case.dtype == torch.float64 else copy.deepcopy(model).double()
        wide = converted(inputs, torch.float64)
        target = torch.randn_like(exact(*wide), dtype=torch.float64).detach()
        batch = (inputs, target.to(case.dtype))
        with watched() as forms:
            J = hesse.parameter_jacobian(model, nn.MSELoss(reduction="sum"), batch)
            rows, norms = J.dense().double(), J.norms().double()
        expected = by_loop(exact, wide, target)
    of_norms = float((norms - expected.norm(dim=1)).norm() / expected.norm())
    error = max(float((rows - expected).norm() / expected.norm()), of_norms)
    assert error < case.tolerance, f"{case.label}: an error of {error:.1e}"
    return Found(case.label, J.paths, forms, error)


def build(make: Make, dtype: torch.dtype) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model in evaluation mode, with random numbers in place of ones and zeros, and its inputs."""
    model, inputs = make()
    model = model.to(dtype).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) / 2)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model, converted(inputs if isinstance(inputs, tuple) else (inputs,), dtype)


def converted(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The inputs with floating-point numbers in this dtype."""
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def by_loop(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """``[N, D]``: the gradient of every sample alone, by plain autograd."""
    leaves = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for n in range(COUNT):
        loss = (model(*[x[n : n + 1] for x in inputs]) - target[n : n + 1]).square().sum()
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([(g.to_dense() if g.is_sparse else g).flatten() for g in grads]))
    return torch.stack(rows)


@contextmanager
def watched() -> Iterator[dict[str, set[str]]]:
    """Within this context it is noted in which nodes weights meet data, and which forms their rules return (see `Found`)."""
    seen: dict[str, set[str]] = {}

    def get(name: Any) -> Any:
        rule, forms = type(layer_rules).get(layer_rules, name), seen.setdefault(str(name), set())

        def watch(meeting: Any) -> Any:
            form = rule(meeting) if rule is not None else None
            forms.add(NO_FORM if form is None else type(form).__name__)
            return form

        return rule and watch

    layer_rules.get = get  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield seen
    finally:
        del layer_rules.get
