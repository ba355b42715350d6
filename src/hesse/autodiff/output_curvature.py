"""The second derivative of a batch's loss by the model's output: by the loss's rule, by autodiff for any other callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.losses import batch_loss, called, require_scalar
from hesse.autodiff.model import Model
from hesse.autodiff.second_order import HessianOperator, hessian_operator
from hesse.core import random
from hesse.core.batching import separating_masks
from hesse.core.errors import MemoryBudgetError, MixedSamplesError, UnsupportedError
from hesse.core.memory import current_budget, format_bytes
from hesse.rules.losses import OutputCurvature, Uniform, known_loss
from hesse.rules.losses.curvature import computing

Loss = Callable[[Any, Any], Tensor]
Kind = Literal["hessian", "information"]


@dataclass(frozen=True, eq=False)
class LossCurvature:
    """The second derivative of a batch loss by the output, ``form / divisor``.

    Attributes:
        form: symmetric, block-diagonal over samples.
        divisor: what it is divided by: the normalizer of a loss with a rule, 1 for any other callable.
    """

    form: OutputCurvature
    divisor: float

    @property
    def factor(self) -> float:
        """What the form is multiplied by; 0 where nothing in the batch counts."""
        return 1.0 / self.divisor if self.divisor else 0.0


def loss_curvature(loss: Loss, output: Tensor, targets: Any, model: Model | None, kind: Kind, asked: str) -> LossCurvature:
    """The Hessian of a loss by the output, or the Fisher information of the distribution that the loss stands for.

    Args:
        loss, output, targets, asked: the loss, the model's output ``[n, ...]``, and what is asked, for error messages.
        model: the model, whose parameters the loss must not read; None if there is none.
        kind: "hessian" at the given targets, "information": expected over targets drawn from the model.

    Raises:
        NonScalarError: ``reduction="none"``. UnsupportedError: the information of a loss without a distribution, the Hessian of
        one that is linear in the output.
    """
    rule = known_loss(loss)
    if rule is None or not isinstance(targets, Tensor):
        if kind == "information":
            require_distribution(loss, "expected", asked)
        hessian = hessian_operator(lambda out: batch_loss(loss, out, targets, model, asked), output)
        return LossCurvature(CallableCurvature(hessian, output, asked), 1.0)
    with torch.no_grad():
        require_scalar(called(loss, output, targets, asked), asked)
    if kind == "information":
        require_distribution(loss, "expected", asked)
    make = rule.information if kind == "information" else rule.curvature
    if make is not None:
        return LossCurvature(make(output, targets), float(rule.mass(output, targets)))
    raise UnsupportedError(
        asked, f"{_name(loss)}, whose rule has no second derivative", "give its rule one, or pass a plain function"
    )


_DISTRIBUTIONS = (
    "use kind='empirical' or 'observed', ggn, or a loss that is the negative logarithm of a known distribution "
    "(cross entropy, BCE, MSE, NLL, Poisson, KL, L1, hesse.GaussianNLL)"
)


def require_distribution(loss: Loss, kind: str, asked: str) -> None:
    """Refuse a Fisher matrix of a loss that is known to be no negative log-likelihood, or (but for the observed one) not known.

    Raises:
        UnsupportedError: with the losses that are.
    """
    rule = known_loss(loss)
    if (rule is None and kind != "observed") or (rule is not None and rule.information is None):
        raise UnsupportedError(asked, f"{_name(loss)}, which stands for no known distribution of targets", _DISTRIBUTIONS)


def refuse_linear(loss: Loss, asked: str) -> None:
    """Refuse a loss that is linear in the output: its Gauss-Newton matrix is zero, whatever the model."""
    rule = known_loss(loss)
    if rule is not None and rule.linear:
        raise UnsupportedError(
            asked,
            f"{_name(loss)}, which is linear in the output: its Gauss-Newton matrix is zero",
            "let the loss take the logits (cross_entropy for nll_loss), or ask for fisher(kind='expected')",
        )


def _name(loss: Any) -> str:
    return getattr(loss, "__name__", type(loss).__name__)


class CallableCurvature(OutputCurvature):
    """The Hessian of any twice-differentiable loss: products by autodiff; roots from the eigenvectors of each sample's block.

    Args:
        hessian: of the batch loss by the output.
        output: the output ``[n, ...]``.
        asked: what for, in error messages.
    """

    def __init__(self, hessian: HessianOperator, output: Tensor, asked: str) -> None:
        super().__init__(output.shape, output.dtype, "the loss is not convex in the output")
        self.hessian, self._asked, self._device = hessian, asked, output.device

    def _mv(self, v: Tensor) -> Tensor:
        return self.hessian @ v

    @cached_property
    def blocks(self) -> Tensor:
        """``[n, c, c]``, the block of every sample (c elements of its output).

        Raises:
            MixedSamplesError: the loss couples samples. MemoryBudgetError: too large.

        Cost: c products with the Hessian by the output, and about log2(n), which show that samples are apart.
        """
        self._require_separate()
        n, c, dtype = self.shape[0], self.shape[1:].numel(), computing(self.dtype)
        needed, budget = 3 * n * c * c * dtype.itemsize, current_budget(None, self._device)
        if needed > budget:
            raise MemoryBudgetError(
                f"The blocks of the loss's Hessian by {c} outputs take too much memory.",
                f"{format_bytes(needed)}, a budget of {format_bytes(budget)}",
                "use a loss that hesse has a rule for (nn.CrossEntropyLoss(), class axis 1), or smaller batches",
                needed,
            )
        blocks = torch.zeros(n, c, c, dtype=dtype, device=self._device)
        for k in range(c):
            unit = torch.zeros(n, c, dtype=dtype, device=self._device)
            unit[:, k] = 1
            blocks[:, :, k] = self._mv(unit.reshape(self.shape)).detach().reshape(n, c)
        return (blocks + blocks.mT) / 2

    def _require_separate(self) -> None:
        """Every pair of samples is on two sides of some mask; what is left of a masked vector must not reach the other side."""
        v = random.normal(self.shape, computing(self.dtype), self._device, random.make_generator())
        eps = torch.finfo(self.dtype).eps
        for mask in separating_masks(self.shape[0]).to(self._device) if self.shape[0] > 1 else ():
            inside = mask.reshape(-1, *(1,) * (len(self.shape) - 1))
            product = self._mv(v * inside).detach()
            leaked = float(product[~mask].abs().max()) if not bool(mask.all()) else 0.0
            if leaked > 64 * eps * float(product.abs().max()):
                raise MixedSamplesError(
                    self._asked,
                    "a loss whose second derivative by the output couples samples",
                    "use a loss that adds or averages over samples, or ask for products only",
                )

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigh(self.blocks)

    @cached_property
    def _slack(self) -> float:
        values = self._eigen[0]
        return 16 * torch.finfo(values.dtype).eps * values.shape[1] * float(values.abs().max()) if values.numel() else 0.0

    def _negative(self) -> Tensor:
        return self._eigen[0] < -self._slack

    @property
    def count(self) -> int:
        """The largest rank of a block."""
        return max(int((self._eigen[0] > self._slack).sum(1).max()), 1)

    def _diagonal(self) -> Tensor:
        return self.blocks.diagonal(dim1=1, dim2=2).reshape(self.shape)

    def _root(self, k: int) -> Tensor:
        values, vectors = self._eigen
        return (vectors[:, :, -1 - k] * values[:, -1 - k, None].clamp(min=0).sqrt()).reshape(self.shape)

    def _sample(self, uniform: Uniform) -> Tensor:
        values, vectors = self._eigen
        signs = 1 - 2 * (uniform(values.shape) < 0.5).to(values.dtype)
        return (vectors @ (signs * values.clamp(min=0).sqrt()).unsqueeze(2)).reshape(self.shape)


class RootCotangents(Sequence[Tensor]):
    """The square root of a form times a number, made when it is asked for: a cotangent, or a slice of them stacked."""

    def __init__(self, form: OutputCurvature, scale: float = 1.0) -> None:
        self._form, self._scale = form, scale

    def __len__(self) -> int:
        return self._form.count

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):  # stacked
            start, stop, _ = k.indices(len(self))
            found = self._form.roots(start, stop)
        elif 0 <= k < len(self):
            found = self._form.root(k)
        else:
            raise IndexError(k)
        return found if self._scale == 1 else found * self._scale


class SampledCotangents(Sequence[Tensor]):
    """Random cotangents whose outer products add up to the form times a number squared, on average.

    Args:
        form: the form.
        samples: how many.
        uniform: ``uniform(stream, shape)``: the random numbers of a stream, the same at every call.
        scale: the number.
    """

    def __init__(
        self,
        form: OutputCurvature,
        samples: int,
        uniform: Callable[[int, Sequence[int]], Tensor],
        scale: float = 1.0,
    ) -> None:
        self._form, self._samples, self._uniform = form, samples, uniform
        self._scale = scale / samples**0.5

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):  # stacked
            return torch.stack([self[i] for i in range(*k.indices(len(self)))])
        if not 0 <= k < len(self):
            raise IndexError(k)
        drawn = self._form.sample(lambda shape: self._uniform(k, shape))
        return drawn if self._scale == 1 else drawn * self._scale
