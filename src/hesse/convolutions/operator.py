"""`Convolution`: a convolution without its bias, as a linear operator between images."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from hesse.convolutions.geometry import Geometry
from hesse.convolutions.products import convolve, convolve_transposed
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.operators.base import LinearOperator


@final
class Convolution(LinearOperator):
    """``x -> conv(x, weight)`` from images ``[in_channels, *size]`` to images ``[out_channels, *out_size]``.

    Made by `hesse.convolution`. Batches of images stand in a leading axis (``A @ x``), as for every operator.

    Attributes:
        geometry: sizes, strides, padding.
    """

    def __init__(self, weight: Tensor, geometry: Geometry) -> None:
        self._weight, self.geometry = weight, geometry
        self.in_space, self.out_space = (_images(weight, shape) for shape in (geometry.in_shape, geometry.out_shape))

    @classmethod
    def from_stored(cls, weight: Tensor, geometry: dict[str, Any]) -> Convolution:
        """From a file, as `hesse.load` reads it."""
        return cls(weight, Geometry(**geometry))

    @property
    def weight(self) -> Tensor:
        """``[out_channels, in_channels / groups, *kernel]``; not copied.

        Raises:
            StructureError: its dtype or device has been changed since, as ``module.double()`` does.
        """
        weight, space = self._weight, self.in_space
        if weight.dtype != space.dtype or weight.device != space.device:
            raise StructureError(
                "A convolution is an operator between images of the dtype and device that its weight had at first.",
                f"a weight of {weight.dtype} on {weight.device}, and images of {space.dtype} on {space.device}",
                "make the operator again, after module.double(), module.to(device) and the like",
            )
        return weight

    def mv(self, v: Tensor) -> Tensor:
        return self.mm(v[None])[0]

    def mm(self, V: Tensor) -> Tensor:
        return convolve(self.geometry, self.weight, V.to(self.weight.dtype))

    def transpose(self) -> LinearOperator:
        return TransposedConvolution(self)

    def __repr__(self) -> str:
        return f"Convolution({self.geometry})"


@final
class TransposedConvolution(LinearOperator):
    """The transpose of a convolution, which is what `torch.nn.ConvTranspose2d` and its kin compute.

    Attributes:
        convolution: the convolution.
    """

    def __init__(self, convolution: Convolution) -> None:
        self.convolution = convolution
        self.in_space, self.out_space = convolution.out_space, convolution.in_space

    def mv(self, v: Tensor) -> Tensor:
        return self.mm(v[None])[0]

    def mm(self, V: Tensor) -> Tensor:
        A = self.convolution
        return convolve_transposed(A.geometry, A.weight, V.to(A.weight.dtype))

    def transpose(self) -> LinearOperator:
        return self.convolution

    def __repr__(self) -> str:
        return f"TransposedConvolution({self.convolution.geometry})"


def _images(weight: Tensor, shape: tuple[int, ...]) -> Space:
    return Space.of(torch.empty(1, dtype=weight.dtype, device=weight.device).expand(shape))
