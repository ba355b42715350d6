"""What the tests of models share."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor

from hesse.core import tree

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=generator(seed))


def filled(params: Any, seed: int = 2) -> Any:
    """Other values in every leaf, so that biases and scales matter."""
    draw = generator(seed)
    return tree.map_tree(lambda t: torch.randn(t.shape, dtype=F64, generator=draw), params)


def gradients(f: Any, params: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
    """Gradients of a weighted sum of the outputs by each leaf, by torch alone."""
    variables = [t.detach().clone().requires_grad_() for t in tree.leaves(params)]
    _, structure = tree.flatten(params)
    y = f(structure.unflatten(variables), *args, **kwargs)
    y = y[0] if isinstance(y, tuple) else y
    weights = torch.arange(1.0, y.numel() + 1, dtype=F64).reshape(y.shape).cos()
    return list(torch.autograd.grad((y * weights).sum(), variables))


def check_part(f: Any, params: Any, x: Tensor, **kwargs: Any) -> None:
    """A part is pure: it pickles, compares by its options, leaves its inputs alone, and its parameters are plain leaves."""
    twin = pickle.loads(pickle.dumps(f))
    assert twin == f
    assert repr(twin) == repr(f)
    assert all(t.is_leaf and not t.requires_grad for t in tree.leaves(params))
    before, given = copy.deepcopy(params), x.clone()
    first, second = f(params, x, **kwargs), twin(params, x, **kwargs)
    for a, b in zip(tree.leaves(first), tree.leaves(second), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for a, b in zip(tree.leaves(params), tree.leaves(before), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(x, given, rtol=0, atol=0)
