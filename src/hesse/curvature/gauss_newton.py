"""``Jᵀ H J`` of one batch: what the Gauss-Newton matrix and the expected Fisher matrix share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.model_run import ModelRun
from hesse.autodiff.output_curvature import LossCurvature, RootCotangents, SampledCotangents
from hesse.autodiff.roots import Asked, rows_of
from hesse.core import random
from hesse.core.errors import MemoryBudgetError, MixedSamplesError, StructureError, SymmetryError, UnsupportedError
from hesse.core.fingerprint import sample_hashes
from hesse.core.guard import PARAMETERS
from hesse.core.memory import Budget
from hesse.core.tree import Tree
from hesse.curvature.batch import BatchOperator
from hesse.curvature.output import OutputHessian
from hesse.linalg.dense import dense_rule
from hesse.linalg.diagonal_rules import costly_diagonal_rule, diagonal_rule
from hesse.linalg.products import mm_within
from hesse.linalg.trace import trace_rule
from hesse.linalg.woodbury import congruence_rule
from hesse.operators.algebra import Congruence
from hesse.operators.base import LinearOperator, Tag
from hesse.parameters.jacobian import ParameterJacobian

NO_ROWS = (MixedSamplesError, UnsupportedError, SymmetryError, MemoryBudgetError)
"""Why a matrix may have no rows: its products are right nevertheless."""

_MOST_ROOTS = 128  # a backward pass each: random signs take fewer products than more of them


def require_samples(samples: Any) -> int:
    """The number of samples; refuses what is no positive one.

    Raises:
        StructureError: samples is not an int above 0.
    """
    if not (isinstance(samples, int) and samples > 0):
        raise StructureError("Sampled rows need a number of samples.", f"samples={samples!r}", "pass samples=1 or more")
    return samples


class GaussNewton(BatchOperator):
    """``Jᵀ H J``: J the model's Jacobian on one batch, H the curvature of the loss by the output, mean over the batch included.

    Products go through J and H. Diagonal, trace and Kronecker factors go through `rows`: ``Jᵀ H J = RᵀR / mass``.

    Attributes:
        run: the model on the batch.
        middle: H; `followed`: the same, differentiable by what the model's output hangs on (inputs that require grad).
    """

    def __init__(
        self,
        run: ModelRun,
        middle: LinearOperator,
        normalizer: Callable[[], tuple[float, bool]],
        batch: Any,
        followed: LinearOperator | None = None,
    ) -> None:
        super().__init__(normalizer, run.reads, batch)
        self.run, self.middle, self.followed = run, middle, followed
        self.in_space = self.out_space = run.space
        self.tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN} | (middle.tags & {Tag.PSD}))

    @property
    def held_bytes(self) -> int:
        """Bytes of the graph that is kept for products."""
        return self.run.held_bytes

    @cached_property
    def product(self) -> Congruence:
        """The matrix as ``Jᵀ H J``."""
        return Congruence(self.run.jacobian, self.middle if self.followed is None else self.followed)

    def mv(self, v: Tree) -> Tree:
        self._guard.check(*PARAMETERS)
        return self.product.mv(v)

    def mm(self, V: Tree) -> Tree:
        self._guard.check(*PARAMETERS)
        return mm_within(self.product, V, self.memory, self.held_bytes)

    def transpose(self) -> LinearOperator:
        return self

    def rows(
        self, *, samples: int | None = None, generator: torch.Generator | None = None, memory: Budget | None = None
    ) -> ParameterJacobian:
        """The factor R ``[N, K, D]`` of the matrix, ``RᵀR / mass`` over all rows, as a structured Jacobian.

        Args:
            samples: None: exact, K = the number of outputs of a sample; a number: so many random rows a sample, whose expected
                ``RᵀR / mass`` is the matrix. They depend on the sample's content and the generator's seed only, not on the
                order of the samples.
            generator: source of the randomness.
            memory: budget of what is written out.

        Raises:
            MixedSamplesError: samples influence each other. SymmetryError: the loss is not convex in the output.
            UnsupportedError: an output that is no tensor with the batch as its first axis.

        Cost: nothing yet; each quantity takes K backward passes without weight gradients, and its contraction.
        """
        seed = None if samples is None else random.seed_of(generator)
        return self.seeded_rows(samples, seed, memory)

    def seeded_rows(
        self, samples: int | None, seed: int | None, memory: Budget | None = None, *, keep: bool = False
    ) -> ParameterJacobian:
        """`rows`, the seed given as a number."""
        self._guard.check(*PARAMETERS)
        asked = Asked(f"{self.run.asked} Its rows are derivatives of every sample's output.", keep=keep)
        forward = self.run.forward
        if forward is None or not isinstance(self.middle, OutputHessian):
            raise UnsupportedError(asked.text, "an output that is no tensor", "pick the tensor: output=lambda o: o.logits")
        if forward.output.shape[:1] != (forward.count,):  # before the mass is asked for, which needs samples too
            found = f"an output of shape {tuple(forward.output.shape)} for {forward.count} samples"
            raise UnsupportedError(asked.text, found, "return a tensor whose first axis is the batch: output=lambda o: o.T")
        curvature = self.middle.curvature
        scale = (self.mass * curvature.factor) ** 0.5  # 1 for losses with a rule
        cotangents = (
            RootCotangents(curvature.form, scale) if samples is None else self._drawn(curvature, samples, seed or 0, scale)
        )
        len(cotangents)
        rows = rows_of(forward, cotangents, self.mass, self.additive, asked)
        return ParameterJacobian.of(rows, self.run.model.params, memory)

    def _drawn(self, curvature: LossCurvature, samples: int, seed: int, scale: float) -> SampledCotangents:
        require_samples(samples)
        keys = sample_hashes(*self._batch)
        dtype, device = (torch.float64 if self.in_space.dtype == torch.float64 else torch.float32), self.in_space.device

        def uniform(stream: int, shape: Any) -> Tensor:
            return random.hashed_uniform(keys, seed, stream, shape[1:], dtype, device)

        return SampledCotangents(curvature.form, samples, uniform, scale)

    def __repr__(self) -> str:
        return repr(self.product)


@dense_rule.register(GaussNewton)
def _dense(A: GaussNewton, memory: Budget | None = None) -> Tensor:
    return dense_rule(A.product, memory)


@diagonal_rule.register(GaussNewton)
def _diagonal(A: GaussNewton) -> Tensor | None:
    rows = _exact_rows(A, _MOST_ROOTS)
    return None if rows is None else A.in_space.ravel(rows.sum_of_squares()) * _factor(rows)


@costly_diagonal_rule.register(GaussNewton)
def _costly_diagonal(A: GaussNewton) -> Tensor | None:
    rows = _exact_rows(A, A.in_space.dim)
    return None if rows is None else A.in_space.ravel(rows.sum_of_squares()) * _factor(rows)


@trace_rule.register(GaussNewton)
def _trace(A: GaussNewton) -> complex | None:
    rows = _exact_rows(A, _MOST_ROOTS)
    return None if rows is None else float(rows.norms().double().square().sum()) * _factor(rows)


@congruence_rule.register(GaussNewton)
def _congruence(A: GaussNewton) -> Congruence | None:
    rows = _exact_rows(A, A.in_space.dim)
    return A.product if rows is None else Congruence(rows * _factor(rows) ** 0.5)


def _exact_rows(A: GaussNewton, most: int) -> ParameterJacobian | None:
    """The exact rows, unless there are more than so many a sample, or none at all."""
    try:
        rows = A.rows()
    except NO_ROWS:
        return None
    return rows if rows.facts.shape[1] <= most else None


def _factor(rows: ParameterJacobian) -> float:
    return 1.0 / rows.mass if rows.mass else 0.0
