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
    "clipped_sum": "sum over samples of clipped gradients",
}
OUTPUTS = {
    "output_jacobian": "Jacobian of the outputs",
    "kernel": "tangent kernel of 64 samples, in their gradients",
}
CURVATURE = {
    "hvp_first": "Hessian product, first",
    "hvp_kept": "Hessian product, repeated",
    "hvp_block": "sixteen Hessian products, repeated",
    "ggn_first": "GGN product, first",
    "ggn_kept": "GGN product, repeated",
    "ggn_block": "sixteen GGN products, repeated",
}
DIAGONALS = {"ggn_diagonal": "GGN diagonal, exact", "hessian_diagonal": "Hessian diagonal, exact"}
SAMPLED = {
    "ggn_diagonal_sampled": "GGN diagonal, one random cotangent a sample",
    "kfac": "KFAC factors (expand), one random cotangent a sample",
    "ekfac": "EKFAC, one random cotangent a sample",
}
SMALL = {"jacobian": "Jacobian, R^100 to R^60", "hessian": "Hessian, R^100 to R"}
TITLES = {**PER_SAMPLE, **OUTPUTS, **CURVATURE, **DIAGONALS, **SAMPLED, **SMALL}
MAX_NORM = "max_norm"  # beside the reference of a clipped sum: the norm that it was clipped to
FIRST = {"kernel": 64}  # quantities that are measured on the first samples of the batch only, and on how many

FUNCTIONS = "functions"  # the "model" on which the quantities of SMALL are measured
MODEL_TITLES = {
    "mlp": "MLP 100-256-256-10, N = 256",
    "lenet": "LeNet on 1x28x28, N = 256",
    "transformer": "Transformer block with embeddings, N = 64 of 32 tokens",
    "3c3d": "3C3D on 3x32x32, N = 64",
    "depthwise": "Depthwise-separable CNN on 3x32x32, N = 32",
    "tokens": "Token MLP, vocabulary of 2000, N = 64 of 32 tokens",
    "lstm": "Character LSTM, N = 32 of 32 characters",
    "resnet18": "ResNet-18 (SiLU, batch normalization in eval mode) on 3x32x32, N = 16",
    "conv3d": "Conv3d with 33 parameters on 1x6x6x6, N = 1000",
    FUNCTIONS: "Small functions of one vector",
}
SLOW = ("3c3d", "depthwise", "lstm", "resnet18", "kernel", "hessian_diagonal", "ekfac")  # left out of quick runs, as blocks are
FEW_RUNS = (
    "ggn_diagonal",
    "hessian_diagonal",
    "ekfac",
)  # quantities so slow that the budget's least number of runs is not asked for
WITH_CURVATURE = ("mlp", "lenet", "transformer", "3c3d")
WITH_OUTPUTS = {"mlp": ("kernel",), "lenet": ("kernel",), "conv3d": ("output_jacobian",)}
WITH_DIAGONALS = {
    **dict.fromkeys(("mlp", "lenet", "3c3d"), (*DIAGONALS, *SAMPLED)),
    "transformer": ("ggn_diagonal", *SAMPLED),
    "conv3d": ("hessian_diagonal",),
}

TOLERANCE = 1e-3  # of float32 results: rounding gives about 1e-6, a wrong formula 1e-2 and more
FLOOR = 1e-3  # a block whose largest entry is below this part of the largest of all is compared with that


def quantities_of(model: str) -> tuple[str, ...]:
    """The names of the quantities that are measured on `model`."""
    if model == FUNCTIONS:
        return tuple(SMALL)
    curvature = CURVATURE if model in WITH_CURVATURE else ()
    return (*PER_SAMPLE, *WITH_OUTPUTS.get(model, ()), *curvature, *WITH_DIAGONALS.get(model, ()))


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

    Of `kfac` and `ekfac` come the blocks that `benchmarks.libraries.kronecker` makes, as they are.

    Args:
        quantity: its name.
        result: a tensor, or a mapping from parameter names to tensors; an [N, D] matrix is split.
        shapes: the parameters' shapes, in order.
    """
    if quantity in ("kfac", "ekfac"):
        return {name: block.detach() for name, block in result.items()}
    if isinstance(result, Mapping):
        return {name: result[name].detach() for name in shapes} if shapes.keys() <= result.keys() else {}
    if quantity in (*DIAGONALS, "ggn_diagonal_sampled"):
        counts = [math.prod(shape) for shape in shapes.values()]
        if result.shape != (sum(counts),):
            return {}
        blocks = zip(shapes.items(), result.detach().split(counts), strict=True)
        return {name: block.reshape(shape) for (name, shape), block in blocks}
    if quantity not in ("dense", "dense_out", "output_jacobian"):
        return {"": result.detach()}
    counts = [math.prod(shape) for shape in shapes.values()]
    if result.ndim != 2 or result.shape[1] != sum(counts):
        return {}
    blocks = zip(shapes.items(), result.detach().split(counts, dim=1), strict=True)
    return {name: block.reshape(-1, *shape) for (name, shape), block in blocks}
