"""`convolution`: the public way to make a convolution as an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from hesse.convolutions.arguments import Padding, Sizes, checked_geometry
from hesse.convolutions.modules import operator_of
from hesse.convolutions.operator import Convolution
from hesse.operators import LinearOperator


@final
class ConvolutionFactory:
    """Makes convolutions as operators: ``hesse.convolution(weight, input_shape, ...)``, ``hesse.convolution.from_module(...)``.

    ``A @ x`` is what `torch.nn.functional.conv1d`, `conv2d` or `conv3d` give, for an image ``[channels, *size]`` or for any
    batch of them; ``A.T`` is the transposed convolution. See `__call__` for the options.
    """

    def __call__(
        self,
        weight: Tensor,
        input_shape: Sequence[int],
        *,
        stride: Sizes = 1,
        padding: Padding = 0,
        padding_mode: str = "zeros",
        dilation: Sizes = 1,
        groups: int = 1,
    ) -> Convolution:
        """A convolution (cross-correlation, as everywhere in PyTorch) between images, as a linear operator.

        Args:
            weight: ``[out_channels, in_channels / groups, *kernel]`` with one to three axes of the kernel, real or complex. It
                is not copied: derivatives by it pass through products, and the operator follows what is written into it.
            input_shape: ``(in_channels, *size)``, without a batch axis.
            stride: step of the windows: one number, or one an axis.
            padding: cells on both sides: one number, one an axis, or one pair ``(before, after)`` an axis; ``"valid"`` for
                none; ``"same"`` for those that keep the size (for a reach that is even one more after than before), which
                needs ``stride=1``.
            padding_mode: what stands in the padding: ``"zeros"``, ``"circular"``, ``"reflect"`` or ``"replicate"``.
            dilation: step between the cells that a kernel reads: one number, or one an axis.
            groups: channels fall into this many groups, which do not see each other.

        Returns:
            The operator from images ``[in_channels, *size]`` to images ``[out_channels, *out_size]``.

        Raises:
            LeafError: a weight of integers, of 8-bit floats or complex32; a sparse one, or no tensor.
            StructureError: channels, groups or sizes that do not fit; a kernel larger than the padded image; paddings that
                PyTorch refuses too: circular ones larger than the image, reflected ones not smaller.

        Cost: nothing until it is used; a product is one convolution of PyTorch, a derivative of it one more.
        """
        geometry = checked_geometry(weight, input_shape, stride, padding, padding_mode, dilation, groups)
        return Convolution(weight, geometry)

    def from_module(self, module: nn.Module, input_shape: Sequence[int], *, bias: str = "refuse") -> LinearOperator:
        """The linear part of a convolution layer, ``x -> module(x)`` without the bias.

        Args:
            module: an `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, `nn.ConvTranspose1d`, `nn.ConvTranspose2d` or
                `nn.ConvTranspose3d` with any options, parametrized ones (weight norm) included.
            input_shape: ``(in_channels, *size)`` of the images that it is applied to, without a batch axis.
            bias: a layer with a bias is affine, not linear: ``"refuse"`` it, or ``"drop"`` the bias.

        Returns:
            A `Convolution`, or for a transposed layer the transpose of one. It holds ``module.weight`` itself, so that it
            follows a training step, and derivatives by the parameters pass through products. What is replaced instead of
            written into is not followed: of a parametrized layer (weight norm, ...), whose weight is computed anew at each
            use, it takes the weight of this moment; make the operator again after a step, or after ``module.weight = ...`` or
            ``load_state_dict(assign=True)``. After ``module.double()`` and the like it refuses until it is made again.

        Raises:
            UnsupportedError: another kind of module, one with hooks, or with a `forward` of its own.
            StructureError: a bias, a lazy layer that has not seen an input yet, or an input that does not fit the layer.
            LeafError: a weight of integers.
        """
        return operator_of(module, input_shape, bias)

    def __repr__(self) -> str:
        return "hesse.convolution"

    def __reduce__(self) -> str:
        return "convolution"


convolution = ConvolutionFactory()
"""Makes convolutions as operators: ``hesse.convolution(weight, input_shape, ...)``, ``hesse.convolution.from_module(...)``."""
