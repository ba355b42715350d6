"""Inner products of the rows of two sources, parameter by parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.parameters import contractions
from hesse.parameters.contractions import Use
from hesse.parameters.source import Source, without_autocast


def inner_products(first: Source, second: Source, shapes: dict[str, torch.Size], zeros: Tensor) -> Tensor:
    """``[roots n, roots m]``, root by root: the inner products of the rows of two sources, which may be the same one.

    Args:
        first, second: the sources.
        shapes: name -> shape of every parameter.
        zeros: of the result's shape and dtype; it is written to.
    """
    result, known = zeros, {}
    zero = zeros.new_zeros(1)

    def add(name: str, use: Use, others: Use) -> None:
        nonlocal result
        part = contractions.gram(use, others, shapes[name].numel(), known)
        result = result + part if part.requires_grad else result.add_(part)

    if first.roots == 1 and second is first:
        first.visit(lambda root, name, use: add(name, use, use))
    else:
        uses = first.stacked(shapes, zero)
        pairs = uses if second is first else second.stacked(shapes, zero)
        with without_autocast():
            for name, others in pairs.items():
                if name in uses:
                    add(name, uses[name], others)
    return result.tril() + result.tril(-1).mT if second is first else result
