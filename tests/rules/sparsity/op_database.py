"""PyTorch's own database of ops, each sample as a function of its floating-point tensors; and Jacobians of such functions, row
by row, by plain autograd."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

REAL = torch.float64
LARGEST = 80  # elements of all inputs, and of all outputs, up to which all rows of a Jacobian are looked at
ROWS = 24  # that are looked at beyond
TOO_LARGE = 100_000  # inputs: some samples of `grid_sampler_3d` have millions, which take gigabytes and minutes each


@dataclass(frozen=True)
class Sample:
    """One call of an op.

    Attributes:
        name: of the entry.
        number: of the sample in its entry.
        inputs: its floating-point tensors.
        f: from these, in a list, to the floating-point results, in a list; random numbers are the same at every call.
    """

    name: str
    number: int
    inputs: list[Tensor]
    f: Callable[[Sequence[Tensor]], list[Tensor]]


@cache
def entries() -> dict[str, Any]:
    """Entries that have derivatives in float64, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return {op.full_name: op for op in op_db if op.supports_autograd and REAL in op.supported_dtypes("cpu")}


def samples(name: str) -> Iterator[Sample]:
    """The samples of an entry that have an input to differentiate by, but for those with more than `TOO_LARGE` numbers."""
    op = entries()[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = list(op.sample_inputs("cpu", REAL, requires_grad=True))
    for number, given in enumerate(found):
        leaves, spec = _pytree.tree_flatten(((given.input, *given.args), given.kwargs))
        moved = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dtype == REAL and leaf.requires_grad]
        if sum(leaves[i].numel() for i in moved) > TOO_LARGE:
            continue
        if moved and all(leaves[i].layout is torch.strided for i in moved):
            f = _function(op, given.output_process_fn_grad, leaves, spec, moved)
            yield Sample(name, number, [leaves[i].detach().clone() for i in moved], f)


def _function(op: Any, processed: Any, leaves: list[Any], spec: Any, moved: list[int]) -> Callable[..., list[Tensor]]:
    def f(inputs: Sequence[Tensor]) -> list[Tensor]:
        own = list(leaves)
        for i, t in zip(moved, inputs, strict=True):
            own[i] = t.clone()  # an op in place may write to it
        args, kwargs = _pytree.tree_unflatten(own, spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            y = op.op(*args, **kwargs)
        y = processed(y) if processed else y
        results = [t for t in _pytree.tree_leaves(y) if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())]
        return [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in results]

    return f


def chosen(sample: Sample, results: int) -> Tensor:
    """The rows of a Jacobian that are looked at: all of a small one, some of a large one, the same for every point."""
    if results <= LARGEST and sum(x.numel() for x in sample.inputs) <= LARGEST:
        return torch.arange(results)
    return torch.randperm(results, generator=torch.Generator().manual_seed(sample.number))[:ROWS].sort().values


def points(sample: Sample) -> list[list[Tensor]]:
    """The sample's own point, one beside it, and its numbers in another order."""
    g = torch.Generator().manual_seed(sample.number)

    def beside(x: Tensor) -> Tensor:
        return x + 0.3 * torch.randn(x.shape, dtype=REAL, generator=g) * x.abs().mean()

    def shuffled(x: Tensor) -> Tensor:
        return x.flatten()[torch.randperm(x.numel(), generator=g)].view(x.shape)

    return [sample.inputs, [beside(x) for x in sample.inputs], [shuffled(x) for x in sample.inputs]]


def jacobian(sample: Sample, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[torch.Size]]:
    """Rows of the Jacobian, ``[k, inputs]``, their numbers, and the shapes of the outputs; what autograd gives no derivative is
    zero."""
    xs = [x.detach().clone().requires_grad_() for x in inputs]
    ys, rows = sample.f(xs), list[Tensor]()
    elements = [e for y in ys for e in y.reshape(-1)]
    numbers = chosen(sample, len(elements))
    for number in numbers.tolist():
        element, nothing = elements[number], [None] * len(xs)
        grads = torch.autograd.grad(element, xs, retain_graph=True, allow_unused=True) if element.requires_grad else nothing
        rows.append(torch.cat([(torch.zeros_like(x) if g is None else g.to_dense()).reshape(-1)
                               for x, g in zip(xs, grads, strict=True)]))  # fmt: skip
    total = sum(x.numel() for x in xs)
    return torch.stack(rows) if rows else torch.zeros(0, total, dtype=REAL), numbers, [y.shape for y in ys]
