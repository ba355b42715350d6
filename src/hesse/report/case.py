"""The case of a report: private copies of the user's model, loss and data, validated, with the price of one gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.model import as_model, check_inputs, is_one_batch, sample_count, select_rows, split_batch
from hesse.check.replica import Model, Replica
from hesse.core import tree
from hesse.core.memory import Budget
from hesse.core.random import make_generator
from hesse.core.tree import Tree
from hesse.operators.data_set import refuse_one_shot
from hesse.report.target import batches_of
from hesse.report.user_code import user_code
from hesse.report.validate import check_loss, time_gradient

_ASKED = "A report needs the loss of a model on a batch."


@dataclass(frozen=True)
class Settings:
    """How a report is made.

    Attributes:
        panels: keys of the panels, in the order of the page; None: all.
        seed: of every random direction; each panel starts from it anew, so that leaving one out changes no other.
        device, dtype: where and in what type the copies of model and data live; None: as they came.
        memory: the budget (bytes, fraction, or a text such as ``"2GiB"``); None: the one in force.
    """

    panels: tuple[str, ...] | None = None
    seed: int = 0
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    memory: Budget | None = None


@dataclass(frozen=True)
class Case:
    """What the panels work on. Nothing in it is the user's own object, except for tensors of data, which stay as they are.

    Attributes:
        model, loss: private copies.
        data: one batch, or an iterable of batches that can be read again.
        batch: the first batch (or the only one).
        batches: number of batches, or None where the data does not say.
        samples: number of samples in `batch`.
        settings: of the report.
        value: the loss of `batch`.
        gradient_seconds: median time of one forward and backward pass over `batch`: the unit of cost.
    """

    model: Model
    loss: Any
    data: Any
    batch: tuple[Tree, Tree]
    batches: int | None
    samples: int
    settings: Settings
    value: float
    gradient_seconds: float

    def generator(self) -> torch.Generator:
        """A fresh generator with the report's seed."""
        return make_generator(self.settings.seed)

    def some_samples(self, most: int) -> tuple[Tensor, tuple[Tree, Tree]]:
        """At most so many samples, spread evenly over the batch: their indices ``[n]`` and the smaller batch."""
        index = torch.linspace(0, self.samples - 1, min(most, self.samples)).round().long()
        return index, (select_rows(self.batch[0], index), select_rows(self.batch[1], index))

    @property
    def tensors(self) -> int:
        """How many parameter tensors are differentiated."""
        return len(tree.leaves(as_model(self.model).params))

    @property
    def labels(self) -> Tensor | None:
        """Integer class labels ``[N]`` of the batch on the CPU, or None where the targets are no such thing."""
        targets = self.batch[1]
        is_label = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.dtype.is_floating_point
        return targets.detach().cpu().long() if is_label and not targets.dtype.is_complex else None


class _Cast:
    """The batches of a data set, each on another device or in another dtype."""

    def __init__(self, batches: Iterable[Any], settings: Settings) -> None:
        self.batches, self.settings = batches, settings

    def __iter__(self) -> Iterator[tuple[Tree, Tree]]:
        for batch in self.batches:
            yield _cast_batch(split_batch(batch, _ASKED), self.settings)


class _SizedCast(_Cast):
    def __len__(self) -> int:
        return len(self.batches)  # pyright: ignore[reportArgumentType]


def make_case(model: Model, loss: Any, data: Any, settings: Settings) -> Case:
    """Copy, validate and time.

    Raises:
        HesseError: data that cannot be used, or a loss that has no derivative; see the errors' own names.
        UserCodeError: the model, the loss or the data raised.

    Cost: 2 evaluations and about 6 gradients of the batch (at most half a second for small models).
    """
    single = is_one_batch(data)
    if not single:
        refuse_one_shot(data, "A report reads its data more than once.")
    batch = split_batch(next(batches_of(data, _ASKED)), _ASKED)
    samples = sample_count(*batch, _ASKED)
    replica = Replica(model, loss, batch, dtype=settings.dtype, device=settings.device)
    check_inputs(as_model(replica.model), replica.batch[0], _ASKED)
    value = check_loss(replica)
    with user_code("differentiating the loss"):
        seconds = time_gradient(replica)
    return Case(
        model=replica.model,
        loss=replica.loss,
        data=replica.batch if single else _cast_data(data, settings),
        batch=replica.batch,
        batches=1 if single else _length(data),
        samples=samples,
        settings=settings,
        value=value,
        gradient_seconds=seconds,
    )


def _length(data: Any) -> int | None:
    return len(data) if hasattr(data, "__len__") else None


def _cast_data(data: Any, settings: Settings) -> Any:
    if settings.dtype is None and settings.device is None:
        return data
    return _Cast(data, settings) if _length(data) is None else _SizedCast(data, settings)


def _cast_batch(batch: tuple[Tree, Tree], settings: Settings) -> tuple[Tree, Tree]:
    def cast(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device=settings.device, dtype=settings.dtype if leaf.is_floating_point() else None)

    return tree.map_tree(cast, batch)
