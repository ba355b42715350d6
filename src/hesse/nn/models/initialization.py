"""Initial values of parameters, drawn as the constructors of torch.nn draw theirs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Initializer:
    """Where initial values come from and where they go.

    Attributes:
        generator: source of random numbers; None takes torch's global one, as the constructors of `torch.nn` do.
        dtype: of the parameters; None takes torch's default.
        device: of the parameters; None takes torch's default. Numbers are drawn on the generator's device.
    """

    generator: torch.Generator | None = None
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None

    def uniform(self, bound: float, *shape: int) -> Tensor:
        """Uniform numbers in [-bound, bound]."""
        target = torch.get_default_device() if self.device is None else self.device
        drawn_on = target if self.generator is None else self.generator.device
        drawn = torch.rand(shape, dtype=self.dtype, device=drawn_on, generator=self.generator)
        return drawn.mul_(2 * bound).sub_(bound).to(target)

    def constant(self, value: float, *shape: int) -> Tensor:
        """One number everywhere."""
        return torch.full(shape, value, dtype=self.dtype or torch.get_default_dtype(), device=self.device)

    def affine(self, *shape: int) -> dict[str, Tensor]:
        """``weight`` of this shape ``[out, in, ...]`` and ``bias`` ``[out]``, uniform within 1 / sqrt(fan in).

        This is what `torch.nn.Linear` and `torch.nn.Conv2d` do (He's uniform rule with a slope of sqrt(5): He, Zhang, Ren, Sun,
        "Delving deep into rectifiers", ICCV 2015).
        """
        fan_in = 1
        for size in shape[1:]:
            fan_in *= size
        bound = fan_in**-0.5
        return {"weight": self.uniform(bound, *shape), "bias": self.uniform(bound, shape[0])}

    def normalization(self, features: int, weight: float = 1.0) -> dict[str, Tensor]:
        """``weight`` and ``bias`` (0) of a normalization, ``[features]``."""
        return {"weight": self.constant(weight, features), "bias": self.constant(0.0, features)}
