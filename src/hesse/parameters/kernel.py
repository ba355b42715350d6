"""`ntk`: the empirical tangent kernel of a model, block by block, without the Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.autodiff.determinism import deterministic
from hesse.autodiff.linearize import linearize_again
from hesse.autodiff.model import Model, Selection, as_model, check_inputs, is_one_batch, sample_count, split_batch
from hesse.autodiff.roots import Asked, Outputs, capture_rows
from hesse.core import tree
from hesse.core.errors import DataError, UnsupportedError
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.core.progress import track
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.linalg.dense import dense_rule
from hesse.linalg.diagonal import diagonal_rule
from hesse.operators.base import LinearOperator, Tag
from hesse.operators.data_set import refuse_one_shot
from hesse.parameters.jacobian import ParameterJacobian

_ASKED = "ntk(model, data) takes inner products of the derivatives of a model's outputs by its parameters."


class Block(NamedTuple):
    """A part of a tangent kernel.

    Attributes:
        rows, columns: which samples of the first and of the second data set.
        values: ``[n, C, m, C]`` (``[n, m]`` for outputs ``[n]``).
    """

    rows: slice
    columns: slice
    values: Tensor


class Side:
    """One of the two data sets of a kernel: the Jacobians of its batches, and products with them."""

    def __init__(self, model: Model, data: Any, outputs: Outputs) -> None:
        refuse_one_shot(data, _ASKED)
        self.model, self.outputs = model, outputs
        if isinstance(data, list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
            remedy = "pass the tuple (inputs, targets), or two batches with their targets: [(inputs, targets), ...]"
            raise DataError(_ASKED, "a list of two tensors, which may be inputs and targets or two batches", remedy)
        is_batch = isinstance(data, (Tensor, dict)) or is_one_batch(data)
        self.batches: Iterable[Any] = [data] if is_batch else data
        self._prints: list[tuple[Any, ...]] = []
        example: Tensor | None = None
        for inputs, count in self._inputs(first=True):
            if example is None:
                with deterministic(model, _ASKED), torch.no_grad():
                    example = self._function(inputs, count)(model.params)
        if example is None:
            raise DataError(_ASKED, "a data set without a batch", "pass at least one batch")
        self.space = Space.of(example.new_empty(sum(size for size, _ in self._prints), *example.shape[1:]))

    def _inputs(self, *, first: bool = False) -> Iterator[tuple[Any, int]]:
        """Inputs and number of samples of every batch, which have to be those of the first pass in the same order."""
        for number, batch in enumerate(self.batches):
            inputs, _ = split_batch(batch, _ASKED, target_needed=False)
            count = sample_count(inputs, None, _ASKED)
            check_inputs(self.model, inputs, _ASKED)
            seen = (count, tuple(_fingerprint(leaf) for leaf in tree.leaves(inputs) if isinstance(leaf, Tensor)))
            if first:
                self._prints.append(seen)
            elif number >= len(self._prints) or self._prints[number] != seen:
                found = f"other samples in batch {number} than when the kernel was made"
                raise DataError(_ASKED, found, "turn shuffling and augmentation off")
            yield inputs, count

    def _function(self, inputs: Any, count: int) -> Callable[[Tree], Tensor]:
        def f(params: Tree) -> Tensor:
            value = self.model.call(params, inputs)
            if self.outputs is None:
                return value
            if isinstance(self.outputs, Tensor) and self.outputs.ndim:
                raise UnsupportedError(
                    _ASKED, "outputs= with a choice for each sample", "pass an int or a list of ints: the same elements for all"
                )
            return value.reshape(count, -1)[:, self.outputs]

        return f

    def jacobians(self) -> Iterator[tuple[slice, ParameterJacobian]]:
        """The output Jacobian of every batch, and which samples it is of."""
        start = 0
        for inputs, count in self._inputs():
            with deterministic(self.model, _ASKED):
                rows = capture_rows(self.model, None, (inputs, None), Asked(_ASKED, self.outputs))
            yield slice(start, start + count), ParameterJacobian.of(rows, self.model.params)
            start += count

    def push(self, v: Tree) -> Tensor:
        """``J v`` over all samples. Cost: one forward-mode pass over the data."""
        return torch.cat([J @ v for _, J in self._linear()])

    def pull(self, u: Tensor) -> Tree:
        """``Jᵀ u`` over all samples. Cost: one gradient over the data."""
        parts = [J.T @ u[s] for s, J in self._linear()]
        return tree.map_tree(lambda *leaves: torch.stack(leaves).sum(0), *parts)

    def _linear(self) -> Iterator[tuple[slice, LinearOperator]]:
        start = 0
        for inputs, count in self._inputs():
            with deterministic(self.model, _ASKED):
                operator = linearize_again(self._function(inputs, count), self.model.params, self.model.key).jacobian
            yield slice(start, start + count), operator
            start += count


def _fingerprint(leaf: Tensor) -> tuple[Any, ...]:
    flat = leaf.detach().flatten()
    numbers = torch.arange(1, flat.numel() + 1, device=flat.device, dtype=torch.float64)
    return tuple(leaf.shape), float(flat.double() @ torch.sin(numbers))


class TangentKernel(LinearOperator):
    """``J1 J2ᵀ`` for the output Jacobians of two data sets by a model's parameters; made by `ntk`.

    An operator from vectors over the outputs of the second data set to such over the first; `tensor` and `blocks` write it out.
    """

    def __init__(self, left: Side, right: Side, memory: Budget | None = None) -> None:
        self.left, self.right, self.memory = left, right, memory
        self.in_space, self.out_space = right.space, left.space
        self.tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD}) if left is right else frozenset()

    def mv(self, v: Tree) -> Tree:
        (weights,) = self.in_space.check(v, "vector")
        return self.left.push(self.right.pull(weights))

    def transpose(self) -> LinearOperator:
        return self if self.left is self.right else TangentKernel(self.right, self.left, self.memory)

    def blocks(self) -> Iterator[Block]:
        """The kernel a pair of batches at a time (of a symmetric one the lower triangle), row of blocks by row of blocks.

        Cost: for every batch of the first data set one capture of each batch of the second, C backward passes each; nothing
        but the forms of two batches is held.
        """
        for rows, J in self.left.jacobians():
            for columns, other in self.right.jacobians():
                if self.left is self.right and columns.start >= rows.start:
                    yield Block(rows, rows, J.gram())
                    break
                yield Block(rows, columns, J.gram(other))

    def tensor(self) -> Tensor:
        """The whole kernel: ``[N, C, M, C]``, or ``[N, M]`` for outputs ``[N]``.

        Raises:
            MemoryBudgetError: it is larger than the budget.
        """
        size = self.in_space.dim * self.out_space.dim * self.out_space.dtype.itemsize
        budget = current_budget(self.memory, self.out_space.device)
        chunk_size(1, size, 0, budget, f"a tangent kernel of {self.shape[0]} x {self.shape[1]}")
        shape = (*self.out_space.shapes[0], *self.in_space.shapes[0])
        result = torch.empty(shape, dtype=self.out_space.dtype, device=self.out_space.device)
        axis = len(self.out_space.shapes[0])
        swapped = (*range(axis, 2 * axis), *range(axis))
        for block in track(self.blocks(), "tangent kernel", None):
            result[block.rows].narrow(axis, block.columns.start, block.columns.stop - block.columns.start).copy_(block.values)
            if self.left is self.right and block.rows != block.columns:
                place = result[block.columns].narrow(axis, block.rows.start, block.rows.stop - block.rows.start)
                place.copy_(block.values.permute(swapped))
        return result

    def __repr__(self) -> str:
        rows, columns = (" x ".join(map(str, space.shapes[0])) for space in (self.out_space, self.in_space))
        width = Space.of(self.left.model.params).dim
        return f"TangentKernel({rows} by {columns} outputs, {width} parameters)"


@dense_rule.register(TangentKernel)
def _dense(A: TangentKernel, memory: Budget | None = None) -> Tensor:
    return A.tensor().reshape(A.shape)


@diagonal_rule.register(TangentKernel)
def _diagonal(A: TangentKernel) -> Tensor | None:
    if A.left is not A.right:
        return None
    return torch.cat([J.norms().square().flatten() for _, J in A.left.jacobians()])


def ntk(
    model: Any,
    data: Any,
    data2: Any = None,
    *,
    outputs: Outputs = None,
    params: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
    memory: Budget | None = None,
) -> TangentKernel:
    """The empirical neural tangent kernel ``J(data) J(data2)ᵀ`` of a model's outputs (Jacot, Gabriel, Hongler 2018).

    Args:
        model: an `nn.Module`, or ``(f, params)``; it has to answer the same for a sample whatever else is in the batch.
        data: inputs of one batch (a tensor, a dict of keyword inputs, or a pair ``(inputs, targets)`` whose targets are not
            read), or an iterable of such batches that gives the same ones in every pass.
        data2: the same for the columns; by default `data`.
        outputs: an int or a list of ints: which elements of a sample's (flattened) output; default all.
        params: names of the parameters, or a predicate ``(name, tensor) -> bool``.
        output: picks the tensor out of what the model returns.
        memory: budget of what is written out.

    Returns:
        A `TangentKernel`: an operator for `solve`, `eigsh`, `trace`; ``K @ v`` costs two gradients and never forms it;
        ``K.tensor()`` is ``[N, C, M, C]``, ``K.blocks()`` gives it a pair of batches at a time.

    Raises:
        MixedSamplesError, UnsupportedError, DataError: as `parameter_jacobian`; DataError also if the data change between
        passes. NondeterministicError: the model draws random numbers.

    Cost: a product: one gradient and one forward-mode pass over the data. Written out: C backward passes without weight
    gradients for each pair of batches, and contractions; no array of N x D is formed.
    """
    resolved = as_model(model, params=params, output=output)
    left = Side(resolved, data, outputs)
    return TangentKernel(left, left if data2 is None else Side(resolved, data2, outputs), memory)
