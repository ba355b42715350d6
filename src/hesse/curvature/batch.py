"""Operators of one batch or of a data set: what all curvature operators share."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.losses import batch_mass
from hesse.autodiff.model import Model, check_inputs, is_one_batch, sample_count, split_batch
from hesse.core import random, tree
from hesse.core.guard import PARAMETERS, Guard
from hesse.core.memory import Budget
from hesse.core.tree import Tree
from hesse.core.watch import Watch
from hesse.curvature.split import Making, split_if_needed
from hesse.linalg.dense import dense_rule
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.products import mm_within
from hesse.linalg.woodbury import congruence_rule
from hesse.operators.algebra import Congruence, Scaled
from hesse.operators.average import Average
from hesse.operators.base import LinearOperator
from hesse.operators.copies import ReadsInPlace
from hesse.operators.data_set import refuse_one_shot
from hesse.operators.spread import Spread
from hesse.parameters.storing.identity import describe_value

BatchLoss = Callable[[Any, Any], Tensor]


class BatchOperator(ReadsInPlace, LinearOperator):
    """What operators of one batch share: the normalizer of its loss, found when it is asked for, and a guard of its tensors.

    Args:
        normalizer: finds the normalizer, and whether the losses of two batches add up.
        reads: the parameters.
        batch: inputs and targets.

    Attributes:
        mass: the normalizer of the loss.
        additive: whether the losses of two batches add up instead of averaging by mass.
        reads: the parameters, which must not change while it is used.
        memory: the budget of its products; None: that in force when they are taken.
        watch: of a data set, over what its operators read; None: there is none.
    """

    memory: Budget | None = None
    watch: Watch | None = None

    def __init__(self, normalizer: Callable[[], tuple[float, bool]], reads: tuple[Tensor, ...], batch: Any) -> None:
        self._find, self._batch, self.reads = normalizer, batch, reads
        self._guard = Guard((*reads, *tensors_of(batch)))

    @cached_property
    def _normalizer(self) -> tuple[float, bool]:
        with nullcontext() if self.watch is None else self.watch.running("normalizer"):
            return self._find()

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The normalizer of the batch's loss."""
        return self._normalizer[0]

    @property
    def additive(self) -> bool:
        """Whether the losses of two batches add up."""
        return self._normalizer[1]


class OfBatch(BatchOperator):
    """An operator that does not know of the batch it belongs to, with what `BatchOperator` adds.

    Attributes:
        operator: what does the work.
    """

    def __init__(
        self,
        operator: LinearOperator,
        normalizer: Callable[[], tuple[float, bool]],
        held_bytes: Callable[[], int | None],
        reads: tuple[Tensor, ...],
        batch: Any,
    ) -> None:
        super().__init__(normalizer, reads, batch)
        self.operator, self._held = operator, held_bytes
        self.in_space, self.out_space, self.tags = operator.in_space, operator.out_space, operator.tags

    @property
    def held_bytes(self) -> int | None:
        """What the operator holds on to; None if it is not worth keeping between passes over a data set."""
        return self._held()

    def mv(self, v: Tree) -> Tree:
        self._guard.check(*PARAMETERS)
        return self.operator.mv(v)

    def mm(self, V: Tree) -> Tree:
        self._guard.check(*PARAMETERS)
        return mm_within(self.operator, V, self.memory, self.held_bytes)

    def transpose(self) -> LinearOperator:
        return OfBatch(self.operator.T, self._find, self._held, self.reads, self._batch)

    def __repr__(self) -> str:
        return repr(self.operator)


@dense_rule.register(OfBatch)
def _dense(A: OfBatch, memory: Budget | None = None) -> Tensor:
    return dense_rule(A.operator, memory)


@diagonal_rule.register(OfBatch)
def _diagonal(A: OfBatch) -> Tensor | None:
    return diagonal_rule(A.operator)


@congruence_rule.register(OfBatch)
def _congruence(A: OfBatch) -> Congruence | None:
    if isinstance(A.operator, Scaled) and isinstance(A.operator.operator, Congruence):  # RᵀR / mass
        inner = A.operator.operator
        factor = complex(A.operator.factor).real
        return Congruence(inner.outer * factor**0.5, inner.middle) if factor > 0 else None
    return congruence_rule(A.operator)


def tensors_of(batch: Any) -> tuple[Tensor, ...]:
    """The tensors of a batch (or of a part of it)."""
    return tuple(leaf for leaf in tree.leaves(batch) if isinstance(leaf, Tensor))


def over_data(making: Making, data: Any, data_check: bool) -> LinearOperator:
    """The operator of one batch, or the average over an iterable of batches; batches that do not fit the budget are split."""
    is_one, asked, memory = is_one_batch(data), making.asked, making.memory
    make = split_if_needed(making, is_data_set=not is_one)
    if is_one:
        return make(data)
    if isinstance(data, Spread):
        return data.average(make, data_check=data_check, memory=memory, name=asked.partition("(")[0])
    refuse_one_shot(data, asked)
    return Average(make, data, data_check=data_check, memory=memory)


def require_same_question(model: Model, loss: BatchLoss, data: Any, **options: Any) -> None:
    """Refuse data on several processes that differ in model (see `Spread._require_same_model`), loss or an option."""
    if isinstance(data, Spread):
        buffers = {} if model.module is None else dict(model.module.named_buffers())
        data._require_same_model(model.key, {**buffers, **model.own})
        texts = {name: json.dumps(describe_value(value)).encode() for name, value in {"loss": loss, **options}.items()}
        hashes = {name: torch.tensor(list(text), dtype=torch.uint8) for name, text in texts.items()}
        data.require_same("The loss, and every option,", hashes)


def seed_for(data: Any, generator: torch.Generator | None) -> int:
    """A seed drawn from the generator; for data on several processes the same on all of them, else refused."""
    seed = random.seed_of(generator)
    if isinstance(data, Spread):
        data.require_same("The seed that the generator gives", {"seed": torch.tensor(seed)})
    return seed


def open_batch(model: Model, batch: Any, asked: str) -> tuple[Any, Any, int]:
    """``(inputs, targets, number of samples)`` of a batch, checked."""
    inputs, targets = split_batch(batch, asked)
    count = sample_count(inputs, targets, asked)
    check_inputs(model, inputs, asked)
    return inputs, targets, count


def normalizer(loss: BatchLoss, output: Any, targets: Any, count: int, asked: str) -> Callable[[], tuple[float, bool]]:
    """Finds the loss's normalizer when it is asked for (a loss without a rule is run on single samples for it)."""
    return lambda: batch_mass(loss, output, targets, count, asked)
