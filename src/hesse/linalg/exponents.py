"""Powers of two that bring the sizes of products near one, so that no square of them overflows or underflows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.linalg.products import row_norms

_PART = 4  # of the exponents of a dtype: sizes that use less of them are left alone, fourth powers being in range


def near_one(products: Tensor, vectors: Tensor) -> float:
    """A power of two, by which the longest of some products is about as long as the vector that it is of; often 1.

    Args:
        products: ``[k, out]``, finite.
        vectors: ``[k, in]``.
    """
    sizes, lengths = row_norms(products).double(), row_norms(vectors).double()
    ratios = sizes[lengths > 0] / lengths[lengths > 0]
    largest = float(ratios.max()) if len(ratios) else 0.0
    if not 0 < largest < math.inf:
        return 1.0
    exponent = math.frexp(largest)[1]
    most = math.frexp(torch.finfo(products.dtype).max)[1]
    power = max(min(-exponent, most - 2), 2 - most)  # a normal number of the dtype itself
    return 1.0 if abs(exponent) < most // _PART else math.ldexp(1.0, power)


def times(vectors: Tensor, power: float) -> Tensor:
    """The vectors times a power of two, which rounds nothing; themselves for 1."""
    return vectors if power == 1 else vectors * power
