"""The derivative of a convolution by its weight; differentiable to any order, as the products are."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.convolutions.geometry import Geometry
from hesse.convolutions.products import padded


def weight_gradient(g: Geometry, x: Tensor, y: Tensor) -> Tensor:
    """The D with ``Re <y, convolve(g, W, x)> = Re <D, W>`` for every weight W.

    Args:
        g: the geometry.
        x: images ``[k, in_channels, *size]``.
        y: images ``[k, out_channels, *out_size]``, of the same dtype.

    Returns:
        ``[out_channels, in_channels / groups, *kernel]``, summed over the k images.

    Cost: as much as one product with the k images (complex ones: four).
    """
    z = padded(g, x)
    if not x.is_complex():
        return _correlated(g, z, y)
    a, b, c, d = z.real, z.imag, y.real, y.imag
    # conj(a + ib) (c + id)
    real = _correlated(g, a, c) + _correlated(g, b, d)
    return torch.complex(real, _correlated(g, a, d) - _correlated(g, b, c))


def _correlated(g: Geometry, z: Tensor, y: Tensor) -> Tensor:
    weight = z.new_zeros(()).expand(g.weight_shape)  # only its shape is read
    zeros = [0] * g.ndim
    arguments = (list(g.stride), zeros, list(g.dilation), False, zeros, g.groups, (False, True, False))
    return torch.ops.aten.convolution_backward(y, z, weight, None, *arguments)[1]
