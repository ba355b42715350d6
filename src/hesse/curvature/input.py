"""Hessians of a model's loss by its inputs, or by what a submodule returns."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.determinism import deterministic
from hesse.autodiff.losses import batch_loss, batch_mass
from hesse.autodiff.model import Model, check_inputs, sample_count, split_batch
from hesse.autodiff.perturbation import Activation, as_constant_model, split_floating
from hesse.autodiff.second_order import HessianOperator, hessian_operator
from hesse.core import random, tree
from hesse.core.batching import separating_masks, slices
from hesse.core.errors import MixedSamplesError
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.core.tree import Tree
from hesse.linalg.diagonal import diagonal_rule
from hesse.operators.base import LinearOperator
from hesse.operators.copies import ReadsInPlace

_INPUT = "input_hessian(model, loss, batch) differentiates the loss of a batch twice by the inputs."
_ACTIVATION = "activation_hessian(model, loss, batch, at) differentiates the loss of a batch twice by what a submodule returns."
_BLOCKS = "The Hessian by inputs or activations has a block a sample where samples do not influence each other."

Loss = Callable[[Any, Any], Tensor]


class SampleHessian(ReadsInPlace, LinearOperator):
    """The Hessian of a batch's loss by values that belong to samples; made by `input_hessian` and `activation_hessian`.

    It is block-diagonal over the samples wherever the model treats them independently, and `blocks` proves that before it
    relies on it; so does ``hesse.diagonal``, which then takes a product for each element of one sample only.

    Attributes:
        operator: products from the kept graph of the gradient.
        value, gradient: the loss, and its gradient, a tree like the vectors.
        mass, additive: the normalizer of the loss, and whether losses of batches add up.
    """

    def __init__(self, operator: HessianOperator, count: int, normalizer: Callable[[], tuple[float, bool]]) -> None:
        self.operator, self.count, self._find = operator, count, normalizer
        self.in_space, self.out_space, self.tags = operator.in_space, operator.out_space, operator.tags
        self.value, self.gradient = operator.value, operator.gradient

    @cached_property
    def _normalizer(self) -> tuple[float, bool]:
        return self._find()

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The normalizer of the batch's loss."""
        return self._normalizer[0]

    @property
    def additive(self) -> bool:
        """Whether the losses of two batches add up."""
        return self._normalizer[1]

    def mv(self, v: Tree) -> Tree:
        return self.operator.mv(v)

    def mm(self, V: Tree) -> Tree:
        return self.operator.mm(V)

    def transpose(self) -> LinearOperator:
        return self

    def blocks(self, *, memory: Budget | None = None) -> Tensor:
        """The dense block of every sample, ``[n, d, d]``, d elements of a sample in the order of the leaves.

        Args:
            memory: budget in bytes, as a fraction of what is free, or as text ("2GiB").

        Raises:
            MixedSamplesError: samples influence each other, or a leaf has no axis of samples in front.
            MemoryBudgetError: the blocks do not fit.

        Cost: d products, and about log2(n) for the proof.
        """
        if not self._keeps_samples_apart:
            raise MixedSamplesError(
                _BLOCKS,
                "blocks between samples that are not zero, or leaves whose first axis is not that of the samples",
                "use hesse.dense for the whole matrix",
            )
        size = self.in_space.dim // self.count
        result = torch.zeros(self.count, size, size, dtype=self.in_space.dtype, device=self.in_space.device)
        needed = 2 * result.numel() * result.element_size()
        chunk = chunk_size(
            size, max(self.operator.graph_bytes, 1), needed, current_budget(memory, result.device), "blocks by sample"
        )
        for part in slices(size, chunk, "blocks by sample"):
            result[:, :, part] = self._columns(part).permute(1, 2, 0)
        return result

    @cached_property
    def _keeps_samples_apart(self) -> bool:
        """Whether products with vectors on some of the samples stay there, for masks that separate every pair of samples."""
        if any(not shape or shape[0] != self.count for shape in self.in_space.shapes):
            return False
        device = self.in_space.device
        noise = random.normal(
            (self.count, self.in_space.dim // self.count), self.in_space.dtype, device, random.make_generator()
        )
        for mask in separating_masks(self.count).to(device):
            product = self._rows(self.operator.mv(self._tree(noise * mask[:, None])))
            if bool(product[~mask].any()):
                return False
        return True

    def _columns(self, part: slice) -> Tensor:
        """``[k, n, d]``: products with unit vectors, the same in every sample."""
        size = self.in_space.dim // self.count
        units = torch.zeros(part.stop - part.start, self.count, size, dtype=self.in_space.dtype, device=self.in_space.device)
        units.diagonal(part.start, 0, 2).fill_(1)
        return self._rows(self.operator.mm(self._tree(units)))

    def _rows(self, vector: Tree) -> Tensor:
        leaves = zip(tree.leaves(vector), self.in_space.shapes, strict=True)
        parts = [leaf.reshape(*leaf.shape[: leaf.ndim - len(shape)], self.count, -1) for leaf, shape in leaves]
        return torch.cat([part.to(self.in_space.dtype) for part in parts], -1)

    def _tree(self, rows: Tensor) -> Tree:
        sizes = [size // self.count for size in self.in_space.sizes]
        parts = zip(rows.split(sizes, -1), self.in_space.shapes, self.in_space.dtypes, strict=True)
        return self.in_space.rebuild([part.reshape(*rows.shape[:-2], *shape).to(dtype) for part, shape, dtype in parts])


@diagonal_rule.register(SampleHessian)
def _diagonal(A: SampleHessian) -> Tensor | None:
    if not A._keeps_samples_apart:
        return None
    size = A.in_space.dim // A.count
    rows = torch.empty(A.count, size, dtype=A.in_space.dtype, device=A.in_space.device)
    for part in slices(size, max(2**22 // max(A.in_space.dim, 1), 1), "diagonal"):
        rows[:, part] = A._columns(part)[:, :, part].diagonal(0, 0, 2)
    return A.in_space.ravel(A._tree(rows))


def input_hessian(model: Any, loss: Loss, batch: Any, *, output: Callable[[Any], Tensor] | None = None) -> SampleHessian:
    """The Hessian of a batch's loss with respect to the model's inputs.

    Args:
        model: an `nn.Module` (its parameters may be frozen), or ``(f, params)`` with ``f(params, *inputs)``.
        loss: ``loss(output, target)``, a scalar.
        batch: ``(inputs, targets)``; inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs.
            Floating-point tensors are differentiated by, all other inputs (tokens, masks) are held constant.
        output: picks the tensor out of what the model returns.

    Returns:
        A symmetric operator on trees like the inputs, with None at the place of constants; block-diagonal over the samples
        where these do not influence each other, with `blocks` and a cheap ``hesse.diagonal``.

    Raises:
        LeafError: no input is a floating-point tensor. Others as `loss_hessian`.

    Cost: one gradient by the inputs with its graph kept, then 1.2 to 2.2 gradients a product.
    """
    resolved, inputs, targets, count = _open(model, batch, output, _INPUT)
    remedy = "use activation_hessian at the layer that embeds them"
    moving, rest = split_floating(inputs, _INPUT, "inputs that cannot be differentiated by", remedy)

    def run(point: Tree) -> Any:
        return resolved.call(resolved.params, tree.combine(point, rest))

    return _hessian(run, moving, resolved, loss, targets, count, _INPUT)


def activation_hessian(
    model: Any, loss: Loss, batch: Any, at: str, *, call: int | None = None, output: Callable[[Any], Tensor] | None = None
) -> SampleHessian:
    """The Hessian of a batch's loss with respect to what a submodule returns: by something added to it, at zero.

    Args:
        model: an `nn.Module`; it is hooked during the call only.
        loss, batch, output: as for `input_hessian`.
        at: name of the submodule, as in ``model.named_modules()``.
        call: which call of it is meant (0 for the first), where the forward pass calls it several times.

    Returns:
        A symmetric operator on trees like the submodule's floating-point outputs (a tuple for a tuple; None at the place of
        what is not floating-point); block-diagonal over the samples where these do not influence each other, with `blocks` and
        a cheap ``hesse.diagonal``.

    Raises:
        StructureError: no such submodule, or the forward pass does not call it. UnsupportedError: it is called several times
        and `call` does not say which is meant. DetachedError: the loss does not depend on it. Others as `loss_hessian`.

    Cost: one forward pass, one gradient by the activation with its graph kept, then 1.2 to 2.2 gradients a product.
    """
    resolved, inputs, targets, count = _open(model, batch, output, _ACTIVATION)
    activation = Activation(resolved, inputs, at, call, _ACTIVATION)
    return _hessian(activation.output, activation.example, resolved, loss, targets, count, _ACTIVATION)


def _open(model: Any, batch: Any, output: Callable[[Any], Tensor] | None, asked: str) -> tuple[Model, Any, Any, int]:
    inputs, targets = split_batch(batch, asked)
    count = sample_count(inputs, targets, asked)
    resolved = as_constant_model(model, output)
    check_inputs(resolved, inputs, asked)
    return resolved, inputs, targets, count


def _hessian(
    run: Callable[[Tree], Any], point: Tree, model: Model, loss: Loss, targets: Any, count: int, asked: str
) -> SampleHessian:
    kept: list[Any] = []

    def objective(values: Tree) -> Tensor:
        result = run(values)
        kept[:] = [tree.map_tree(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, result)]
        return batch_loss(loss, result, targets, model, asked)

    constant = tree.map_tree(lambda leaf: leaf.detach(), point)
    with deterministic(model, asked):
        operator = hessian_operator(objective, constant)
    return SampleHessian(operator, count, lambda: batch_mass(loss, kept[0], targets, count, asked))
