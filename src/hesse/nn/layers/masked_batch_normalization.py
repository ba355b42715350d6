"""`MaskedBatchNormalization`: batch normalization of sequences of different lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.nn.models.batch_normalization import Statistics, initial_statistics
from hesse.nn.models.initialization import Initializer
from hesse.nn.models.options import require_last


def MaskedBatchNormalization(
    features: int = 10,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    weight: float = 0.1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[MaskedBatchNormalizationFunction, Tree]:
    """Batch normalization whose statistics count valid entries only.

    Laurent et al., "Batch normalized recurrent neural networks" (ICASSP 2016). With a mask of ones it is
    `torch.nn.BatchNorm1d`.

    Args:
        features: size of the last axis.
        momentum: weight of the new batch in the running statistics.
        eps: inside the square root.
        weight: initial scale; below 1 is recommended inside an LSTM.
        dtype: of the parameters.
        device: of the parameters.

    Returns:
        ``(f, params)``. ``f(params, x, mask, state=None, training=...)`` returns ``(output, new_state)``.
        ``f.initial_state(params)`` is what state=None stands for. ``params``: ``weight`` and ``bias`` (0), ``[features]``.
        The state: ``running_mean`` (0) and ``running_var`` (1; of unbiased variances), ``[features]``.
    """
    f = MaskedBatchNormalizationFunction(features, momentum, eps)
    return f, Initializer(None, dtype, device).normalization(features, weight)


@dataclass(frozen=True)
class MaskedBatchNormalizationFunction:
    """The pure function that `MaskedBatchNormalization` returns."""

    features: int
    momentum: float
    eps: float

    def initial_state(self, params: Tree) -> Statistics:
        """Running statistics before any batch."""
        return initial_statistics(params["weight"])

    def __call__(
        self, params: Tree, x: Tensor, mask: Tensor, state: Statistics | None = None, *, training: bool = False
    ) -> tuple[Tensor, Statistics]:
        """The normalized input and the new state.

        Args:
            params: the tree that the constructor returned, or one of the same structure.
            x: ``[batch, time, features]``, ``[batch, features]`` or ``[features]``. What stands at masked places
                (NaN too) has no influence.
            mask: nonzero where x is valid, in the shape of x or without its last axis.
            state: of the previous call; None to start.
            training: normalize by the mean and variance of the valid entries, and move the running ones; a feature
                without valid entries leaves them as they are.

        Returns:
            the output in the shape of x, zero at masked places, and the state: a new one in training, else the given one.

        Raises:
            StructureError: a mask or an input of another shape.
        """
        require_last(x, self.features, "This masked batch normalization")
        valid = self._valid(x, mask)
        before = self.initial_state(params) if state is None else state
        filled = torch.where(valid, x, 0.0)
        if not training:
            mean, variance, after = before["running_mean"], before["running_var"], before
        else:
            over = list(range(x.ndim - 1))
            count = valid.to(x.dtype).sum(over) if over else valid.to(x.dtype)
            size = count.clamp(min=1)
            mean = (filled.sum(over) if over else filled) / size
            squares = torch.where(valid, filled - mean, 0.0).square()
            squares = squares.sum(over) if over else squares
            variance, after = squares / size, self._moved(before, mean, squares, count)
        normalized = (filled - mean) * torch.rsqrt(variance + self.eps)
        return torch.where(valid, normalized * params["weight"] + params["bias"], 0.0), after

    def _moved(self, before: Statistics, mean: Tensor, squares: Tensor, count: Tensor) -> Statistics:
        seen = {"running_mean": mean.detach(), "running_var": squares.detach() / (count - 1).clamp(min=1)}
        return {
            name: torch.where(count > 0, torch.lerp(before[name], new, self.momentum), before[name])
            for name, new in seen.items()
        }

    def _valid(self, x: Tensor, mask: Tensor) -> Tensor:
        valid = mask.unsqueeze(-1) if mask.ndim == x.ndim - 1 else mask
        if valid.shape not in (x.shape, (*x.shape[:-1], 1)):
            asked = "The mask has the shape of the input, or that without its last axis."
            raise StructureError(
                asked, f"{tuple(mask.shape)} for {tuple(x.shape)}", "pass one entry for each step of each sample"
            )
        return (valid != 0).expand(x.shape)
