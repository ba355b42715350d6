"""What is measured: the quantities by name, and how results and references are compared. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PER_SAMPLE = {
    "dense": "per-sample gradients, fresh",
    "dense_out": "per-sample gradients, into a re-used buffer",
    "norms": "per-sample gradient norms",
    "squares": "sum over samples of squared gradients",
    "gram": "Gram matrix of the per-sample gradients",
}
CURVATURE = {
    "hvp_first": "Hessian product, first",
    "hvp_kept": "Hessian product, repeated",
    "hvp_block": "sixteen Hessian products, repeated",
    "ggn_first": "GGN product, first",
    "ggn_kept": "GGN product, repeated",
    "ggn_block": "sixteen GGN products, repeated",
}
SMALL = {"jacobian": "Jacobian, R^100 to R^60", "hessian": "Hessian, R^100 to R"}
TITLES = {**PER_SAMPLE, **CURVATURE, **SMALL}

FUNCTIONS = "functions"  # the "model" on which the quantities of SMALL are measured
MODEL_TITLES = {
    "mlp": "MLP 100-256-256-10, N = 256",
    "lenet": "LeNet on 1x28x28, N = 256",
    "transformer": "Transformer block with embeddings, N = 64 of 32 tokens",
    "3c3d": "3C3D on 3x32x32, N = 64",
    FUNCTIONS: "Small functions of one vector",
}

TOLERANCE = 1e-3  # of float32 results: rounding gives about 1e-6, a wrong formula 1e-2 and more
FLOOR = 1e-3  # a block whose largest entry is below this part of the largest of all is compared with that


def quantities_of(model: str) -> tuple[str, ...]:
    """The names of the quantities that are measured on `model`."""
    return tuple(SMALL) if model == FUNCTIONS else (*PER_SAMPLE, *CURVATURE)


def relative_error(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The largest error of any entry, relative to the largest of its block (parameter); inf for a wrong form.

    A block that is zero or nearly so (the gradient of an attention's key bias is) is measured against `FLOOR`
    times the largest entry of all blocks. NaN counts as an infinite error.
    """
    if found.keys() != reference.keys() or any(found[k].shape != reference[k].shape for k in reference):
        return math.inf
    largest = max(float(block.abs().max()) for block in reference.values())
    errors = []
    for name, block in reference.items():
        scale = max(float(block.abs().max()), FLOOR * largest)
        errors.append(float((found[name].to(block.dtype) - block).abs().max()) / scale if scale else math.inf)
    return math.inf if any(map(math.isnan, errors)) else max(errors)


def as_blocks(quantity: str, result: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A library's result in one form: blocks by parameter where there are parameters, else one block.

    Args:
        quantity: its name.
        result: a tensor, or a mapping from parameter names to tensors; an [N, D] matrix is split.
        shapes: the parameters' shapes, in order.
    """
    if isinstance(result, Mapping):
        return {name: result[name].detach() for name in shapes} if shapes.keys() <= result.keys() else {}
    if quantity not in ("dense", "dense_out"):
        return {"": result.detach()}
    counts = [math.prod(shape) for shape in shapes.values()]
    if result.ndim != 2 or result.shape[1] != sum(counts):
        return {}
    blocks = zip(shapes.items(), result.detach().split(counts, dim=1), strict=True)
    return {name: block.reshape(-1, *shape) for (name, shape), block in blocks}
