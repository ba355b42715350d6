"""What an entry of the catalog of stock modules is, how it is written, and what its inputs are drawn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

Draw = Callable[[torch.dtype, Generator], Tensor]
Layout = Literal["contiguous", "strided", "channels last"]
READ_MODE = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.RReLU, nn.RNNBase, nn.MultiheadAttention)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Entry:
    """A stock module with one set of options.

    Attributes:
        name: unique: the call of the constructor, and a remark where two entries have the same.
        make: the module in its default dtype; parameters from torch's random state.
        inputs: a drawer for each positional input.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Draw, ...]

    def module(self, dtype: torch.dtype, *, training: bool) -> nn.Module:
        """A fresh module in one dtype and mode."""
        return self.make().to(dtype).train(training)

    def draw(self, dtype: torch.dtype, layout: Layout, generator: Generator) -> tuple[Tensor, ...]:
        """Inputs: floating-point ones in `dtype` and `layout`, the same numbers up to rounding in every dtype."""
        return tuple(laid_out(draw(dtype, generator), layout) for draw in self.inputs)


def modes(entry: Entry) -> tuple[bool, ...]:
    """The values of `training` in which an entry is to be checked: one where no part of it reads the mode."""
    return (True, False) if any(isinstance(part, READ_MODE) for part in entry.make().modules()) else (True,)


def laid_out(x: Tensor, layout: Layout) -> Tensor:
    """The same numbers with other strides; contiguous where a layout does not exist for x."""
    if layout == "channels last" and x.dim() in (4, 5):
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    if layout == "strided" and x.dim() > 0 and x.is_floating_point():
        wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1] + 1)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x


def has_layout(entry: Entry, layout: Layout) -> bool:
    """Whether a layout differs from the contiguous one for some input."""
    if layout == "contiguous":
        return True
    drawn = [draw(torch.float32, Generator().manual_seed(0)) for draw in entry.inputs]
    return any(x.stride() != laid_out(x, layout).stride() for x in drawn)


def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Draw:
    """Normal numbers."""
    return lambda dtype, g: (shift + scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Draw:
    """Uniform numbers."""
    return lambda dtype, g: (low + (high - low) * torch.rand(*shape, generator=g, dtype=torch.float64)).to(dtype)


def signs(*shape: int) -> Draw:
    """1 or -1, floating-point."""
    return lambda dtype, g: (2 * torch.randint(2, shape, generator=g) - 1).to(dtype)


def labels(classes: int, *shape: int, low: int = 0) -> Draw:
    """Integers from `low` to `classes` - 1."""
    return lambda dtype, g: torch.randint(low, classes, shape, generator=g)


def constant(*values: int) -> Draw:
    """The same integers always."""
    return lambda dtype, g: torch.tensor(values)


def log_probabilities(*shape: int) -> Draw:
    """Normalized along the last axis."""
    return lambda dtype, g: torch.randn(*shape, generator=g, dtype=torch.float64).log_softmax(-1).to(dtype)


def probabilities(*shape: int) -> Draw:
    """Normalized along the last axis."""
    return lambda dtype, g: torch.randn(*shape, generator=g, dtype=torch.float64).softmax(-1).to(dtype)


class Catalog:
    """Entries under construction: ``catalog(inputs, nn.Linear, 3, 4, bias=False)`` adds one, named by its call."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def __call__(self, inputs: Draw | tuple[Draw, ...], kind: type[nn.Module], *args: object, **options: object) -> None:
        """Adds ``kind(*args, **options)`` on `inputs`."""
        words = [_word(a) for a in args] + [f"{key}={_word(value)}" for key, value in options.items()]
        self.add(f"{kind.__name__}({', '.join(words)})", lambda: kind(*args, **options), inputs)

    def add(self, name: str, make: Callable[[], nn.Module], inputs: Draw | tuple[Draw, ...]) -> None:
        """Adds a module made by a function."""
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        taken = {entry.name for entry in self.entries}
        names = (name if k == 1 else f"{name} #{k}" for k in range(1, 99))
        self.entries.append(Entry(next(free for free in names if free not in taken), make, inputs))


def _word(value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor{list(value.shape)}"
    if isinstance(value, nn.Module | nn.LinearCrossEntropyOptions):
        return f"{type(value).__name__}()"
    return getattr(value, "__name__", None) or repr(value)
