"""`LayerNormalization`: each sample by its own mean and variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.core.tree import Tree
from hesse.nn.models.initialization import Initializer
from hesse.nn.models.options import require_last
from hesse.nn.models.part import Part


def LayerNormalization(
    features: int = 10,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Part, Tree]:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, as `torch.nn.LayerNorm`.

    Ba, Kiros, Hinton, "Layer normalization" (arXiv:1607.06450); the variance is the population's.

    Args:
        features: size of the last axis.
        eps: inside the square root.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        ``(f, params)``. ``f(params, x)`` takes ``[..., features]`` and returns the same shape. ``params``: ``weight`` (1) and
        ``bias`` (0), ``[features]``.
    """
    return LayerNormalizationFunction(features, eps), Initializer(None, dtype, device).normalization(features)


@dataclass(frozen=True)
class LayerNormalizationFunction(Part):
    """The pure function that `LayerNormalization` returns."""

    features: int
    eps: float

    @property
    def stateful(self) -> bool:
        """False."""
        return False

    def __call__(
        self,
        params: Tree,
        x: Tensor,
        state: Tree = None,
        *,
        training: bool = False,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The normalized input, in its shape.

        Raises:
            StructureError: another last axis.
        """
        require_last(x, self.features, "This layer normalization")
        return torch.nn.functional.layer_norm(x, (self.features,), params["weight"], params["bias"], self.eps)
