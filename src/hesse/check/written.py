"""Trees of tensors as Python text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.tree import Tree

_WRITTEN = 64  # elements up to which a tensor is written out


@dataclass(frozen=True)
class Expression:
    """Stands for a tensor in a tree: text that computes it.

    Attributes:
        text: Python text.
        layout: none, since it is not a tensor yet.
    """

    text: str
    layout: None = None


def written(x: Any) -> str:
    """A tree as Python text; large tensors as random ones of the same shape, type and size.

    Args:
        x: a tree of tensors and constants.

    Returns:
        The text. What cannot be written says what to fill in.
    """
    if isinstance(x, Tensor):
        return _tensor(x)
    if isinstance(x, Expression):
        return x.text
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key!r}: {written(value)}" for key, value in x.items()) + "}"
    if type(x) is list:
        return "[" + ", ".join(map(written, x)) + "]"
    if type(x) is tuple:
        return "(" + "".join(f"{written(value)}, " for value in x).rstrip() + ")"
    if x is None or isinstance(x, (bool, int, float, complex, str)):
        return repr(x)
    return f"...  # fill in: the {type(x).__name__} that was checked\n"


def is_written_out(x: Tree) -> bool:
    """Whether the text of a tree gives the same numbers."""
    tensors = (t for t in tree.flatten(x)[0] if isinstance(t, Tensor))
    return "# fill in" not in written(x) and all(t.numel() <= _WRITTEN for t in tensors)


def _tensor(x: Tensor) -> str:
    if x.layout is not torch.strided:
        return f"...  # fill in: the {x.layout} tensor of shape {tuple(x.shape)} that was checked\n"
    x, shape = x.detach().cpu(), tuple(x.shape)
    if not x.numel():
        return f"torch.zeros({shape}, dtype={x.dtype})"
    if x.numel() <= _WRITTEN:
        return f"torch.tensor({x.tolist()!r}, dtype={x.dtype})"
    seeded = "generator=torch.Generator().manual_seed(0)"
    if x.is_floating_point() or x.is_complex():
        size = x.abs().double().square().mean().sqrt().item()
        factor = f"{size:.2g} * " if 0 < size < float("inf") and not 0.5 < size < 2 else ""
        return f"{factor}torch.randn({shape}, dtype={x.dtype}, {seeded})"
    return f"torch.randint({int(x.min())}, {int(x.max()) + 1}, {shape}, {seeded}).to({x.dtype})"
