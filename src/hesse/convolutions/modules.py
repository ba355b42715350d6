"""Convolution layers of PyTorch as operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from hesse.convolutions.arguments import checked_geometry, whole_number
from hesse.convolutions.operator import Convolution
from hesse.core.errors import StructureError, UnsupportedError
from hesse.operators import LinearOperator

_FORWARD = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS = _FORWARD + _TRANSPOSED


def operator_of(module: nn.Module, input_shape: Sequence[int], bias: str) -> LinearOperator:
    """The linear part of a layer; see ``convolution.from_module``."""
    layer: Any = _checked(module, bias)
    if isinstance(module, _TRANSPOSED):
        return _transposed(layer, input_shape).T
    padding = layer.padding
    if layer.padding_mode != "zeros":  # then PyTorch reads these, whatever has been written into `padding` since
        cells = layer._reversed_padding_repeated_twice
        padding = list(zip(cells[-2::-2], cells[::-2], strict=True))
    options = (layer.stride, padding, layer.padding_mode, layer.dilation, layer.groups)
    return Convolution(layer.weight, checked_geometry(layer.weight, input_shape, *options))


def _checked(module: nn.Module, bias: str) -> nn.Module:
    """The module, if all that it computes is known.

    Raises:
        UnsupportedError, StructureError: it is not.
    """
    if bias not in ("refuse", "drop"):
        raise StructureError("from_module has no such way with a bias.", f"bias={bias!r}", "use 'refuse' or 'drop'")
    kind = next((kind for kind in _KINDS if isinstance(module, kind)), None)
    if kind is None:
        raise UnsupportedError(
            "from_module takes nn.Conv1d, nn.Conv2d, nn.Conv3d and their transposed kin.", _name(module), _inside(module)
        )
    layer: Any = module
    if any(is_lazy(part) for part in module._parameters.values() if part is not None):
        raise StructureError(
            "A lazy layer has no weight before it has seen an input.", _name(module), "apply it once to an example input"
        )
    changed = [name for name in ("forward", "_conv_forward", "__call__") if _differs(module, kind, name)]
    if changed:
        raise UnsupportedError(
            f"from_module knows what {kind.__name__}.forward computes.",
            f"{_name(module)} with a {changed[0]} of its own",
            "pass its weight to hesse.convolution, if that is all it is",
        )
    if module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedError(
            "Hooks may change what a layer computes.",
            f"hooks of {_name(module)}",
            "remove them (the norms of torch.nn.utils.parametrizations use none; after pruning: prune.remove)",
        )
    if layer.bias is not None and bias == "refuse":
        raise StructureError(
            "A convolution with a bias is affine, not linear.",
            f"a bias of {layer.bias.numel()} numbers in {_name(module)}",
            "pass bias='drop' for its linear part",
        )
    return module


def _differs(module: nn.Module, kind: type[nn.Module], name: str) -> bool:
    return name in vars(module) or getattr(type(module), name, None) is not getattr(kind, name, None)


def _transposed(layer: Any, input_shape: Sequence[int]) -> Convolution:
    """The convolution whose transpose the layer computes.

    The layer gives ``(m - 1) stride - 2 padding + reach + output_padding`` cells for m. A convolution of these reads m windows
    if `output_padding` is less than the stride; PyTorch allows more under a dilation: cells that nothing reaches. Then padding
    is taken away behind, or, where there is none, the kernel gets taps of zero.
    """
    if layer.padding_mode != "zeros":
        raise UnsupportedError(
            "A transposed convolution pads by zeros.", f"padding_mode={layer.padding_mode!r}", "PyTorch refuses others, too"
        )
    weight: Tensor = layer.weight
    axes = weight.ndim - 2
    if not isinstance(input_shape, Sequence) or len(input_shape) != axes + 1 or input_shape[0] != weight.shape[0]:
        raise StructureError(
            f"The input_shape of {type(layer).__name__} is (in_channels, *size), without a batch axis.",
            f"{input_shape!r} for {weight.shape[0]} channels and {axes} spatial axes",
            "pass the shape of one image that the layer takes",
        )
    sizes, padding, taps = [], [], []
    options = zip(input_shape[1:], weight.shape[2:], *(_spread(layer, name, axes) for name in _TRANSPOSED_OPTIONS), strict=True)
    for axis, (m, k, s, d, p, extra) in enumerate(options):
        if not 0 <= extra < max(s, d):
            raise StructureError(
                "output_padding is less than the stride or the dilation.",
                f"output_padding {extra}, stride {s}, dilation {d} at spatial axis {axis}",
                "PyTorch refuses it, too: use less",
            )
        reach = d * (k - 1) + 1
        n = (whole_number("Each entry of input_shape", m, 1) - 1) * s - 2 * p + reach + extra
        if n < 1:
            raise StructureError(
                "The output of a transposed convolution has at least one cell.",
                f"{n} at spatial axis {axis} for an input of {m}",
                "use a larger image or less padding",
            )
        more = math.ceil(max(extra - extra % s - p, 0) / d)
        sizes.append(n)
        taps.append(more)
        padding.append((p, p - (extra - extra % s) + d * more))
    weight = F.pad(weight, [cells for more in reversed(taps) for cells in (0, more)]) if any(taps) else weight
    shape = (weight.shape[1] * layer.groups, *sizes)
    geometry = checked_geometry(weight, shape, layer.stride, padding, "zeros", layer.dilation, layer.groups)
    return Convolution(weight, geometry)


_TRANSPOSED_OPTIONS = ("stride", "dilation", "padding", "output_padding")


def _spread(layer: Any, name: str, axes: int) -> tuple[int, ...]:
    values = tuple(getattr(layer, name))
    return values * axes if len(values) == 1 else values


def _name(module: Any) -> str:
    if not isinstance(module, nn.Module):
        return type(module).__name__
    return f"{type(module).__name__}({module.extra_repr()})"


def _inside(module: Any) -> str:
    """What to pass instead: the convolutions inside."""
    if not isinstance(module, nn.Module):
        return "pass such a module, or a weight to hesse.convolution"
    inner = [name for name, part in module.named_modules() if isinstance(part, _KINDS)]
    if not inner:
        return "pass such a module, or hesse.linearize(module, x).jacobian for another one"
    shown = ", ".join(repr(name) for name in inner[:4]) + (" ..." if len(inner) > 4 else "")
    return f"pass one of its children {shown}, with the shape of its own input: module.get_submodule({inner[0]!r})"
