"""The loss of a batch in float64 as a function of the parameters, one of which moves along a line."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.autodiff.recording import node_outputs, nodes
from hesse.check.replica import Replica
from hesse.core.errors import UnsupportedError
from hesse.core.random import normal

_SHIFT = 1e-2  # how far, relatively, `shift` goes
_NEGLIGIBLE = 1e-6  # slopes this small beside those of the other parameters are rounding


class Float64Loss:
    """A replica in float64, its gradient, and directions of the size of its parameters.

    Args:
        replica: in float64; its parameters are moved and put back.

    Attributes:
        replica: the same.
        gradient: by name, at the point where the replica came from.
        epsilon: relative unit of rounding of the shortest type that the loss is computed in on the way (a model may cast).

    Raises:
        UnsupportedError: the model or its loss cannot be computed in float64.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        try:
            self.gradient = replica.gradient()
            self.epsilon = _rounding(replica.value())
        except Exception as error:
            raise UnsupportedError(
                "Derivatives are checked on a copy of the model in float64.",
                f"the copy raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                "let constants in the model take their dtype from its inputs or parameters",
            ) from error
        self._home = {name: leaf.detach().clone() for name, leaf in replica.leaves.items()}
        everything = torch.cat([value.abs().flatten() for value in self._home.values()])
        self._typical = everything.square().mean().sqrt().item()
        self._largest_slope = max(self.size(name) * g.norm().item() for name, g in self.gradient.items())

    def size(self, name: str) -> float:
        """The typical size of an element of a parameter, never zero."""
        leaf = self.replica.leaves[name].detach()
        return max(leaf.abs().square().mean().sqrt().item(), 1e-2 * self._typical) or 1.0

    def direction(self, name: str, generator: torch.Generator) -> Tensor:
        """A random direction: independent normal entries of the size of the parameter's own."""
        leaf = self.replica.leaves[name]
        return self.size(name) * normal(leaf.shape, leaf.dtype, leaf.device, generator)

    def scale(self, name: str, gradient: dict[str, Tensor]) -> float:
        """The typical slope along a direction, given the gradient; never negligible beside other parameters' slopes."""
        return max(self.size(name) * gradient[name].norm().item(), _NEGLIGIBLE * self._largest_slope, 1e-30)

    def along(self, name: str, direction: Tensor) -> Callable[[float], float]:
        """``t -> loss`` with the named parameter moved by t times the direction from where it is now."""
        leaf = self.replica.leaves[name]
        start = leaf.detach().clone()

        def phi(t: float) -> float:
            with torch.no_grad():
                leaf.copy_(start + t * direction)
            value = self.replica.value().item()  # with gradients on: a model may differentiate inside
            with torch.no_grad():
                leaf.copy_(start)
            return value

        return phi

    def shift(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Move all parameters a little at random; the gradient there."""
        with torch.no_grad():
            for name, leaf in self.replica.leaves.items():
                step = normal(leaf.shape, leaf.dtype, leaf.device, generator)
                leaf.add_(_SHIFT * max(self.size(name), self._typical) * step)
        return self.replica.gradient()

    def go_home(self) -> None:
        """Undo every `shift`."""
        with torch.no_grad():
            for name, leaf in self.replica.leaves.items():
                leaf.copy_(self._home[name])


def _rounding(value: Tensor) -> float:
    dtypes = {meta.dtype for node in nodes([value.grad_fn]) for meta in node_outputs(node)}
    return max(torch.finfo(dtype).eps for dtype in {*dtypes, value.dtype} if dtype.is_floating_point or dtype.is_complex)


def slope(gradient: Tensor, direction: Tensor) -> float:
    """The derivative along a direction: the real part of <gradient, direction>."""
    return (gradient.conj() * direction).sum().real.item()
