"""`ntk`: the empirical tangent kernel of a model, block by block, without the Jacobian."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hesse.autodiff.model import Model, Selection, as_model, is_one_batch
from hesse.autodiff.roots import Asked, Outputs
from hesse.core.chunk_store import Mode
from hesse.core.chunk_store_layout import DEFAULT_CHUNK_BYTES
from hesse.core.errors import DataError
from hesse.core.memory import Budget
from hesse.core.tree import Tree
from hesse.linalg.dense import dense_rule
from hesse.linalg.diagonal import diagonal_rule
from hesse.operators.base import LinearOperator, Tag
from hesse.parameters.data_jacobian import DataJacobian
from hesse.parameters.gram_blocks import Block
from hesse.parameters.gram_budget import plan_gram
from hesse.parameters.recipe import Recipe, own_outputs

if TYPE_CHECKING:
    from hesse.parameters.storing.matrix import StoredMatrix

_ASKED = "ntk(model, data) takes inner products of the derivatives of a model's outputs by its parameters."


class TangentKernel(LinearOperator):
    """``J1 J2ᵀ`` for the output Jacobians of two data sets by a model's parameters; made by `ntk`.

    An operator from vectors over the outputs of the second data set to such over the first; `tensor` and `blocks` write it out.
    """

    def __init__(self, left: DataJacobian, right: DataJacobian, memory: Budget | None = None) -> None:
        self.left, self.right, self.memory = left, right, memory
        self.in_space, self.out_space = right.out_space, left.out_space
        self.tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD}) if left is right else frozenset()

    def mv(self, v: Tree) -> Tree:
        (weights,) = self.in_space.check(v, "vector")
        return self.left.mv(self.right.weighted_sum(weights))

    def mm(self, V: Tree) -> Tree:
        (weights,) = self.in_space.check(V, "block of vectors", 1)
        return self.left.mm(self.right.weighted_sums(weights))

    def transpose(self) -> LinearOperator:
        return self if self.left is self.right else TangentKernel(self.right, self.left, self.memory)

    def blocks(self) -> Iterator[Block]:
        """The kernel a pair of batches at a time (of parts of them, under a budget); of a symmetric one the lower triangle.

        Cost: as `ParameterJacobian.gram_blocks`: C backward passes without weight gradients for each batch that is captured,
        and contractions; nothing but the forms of a few batches is held.
        """
        plan = plan_gram(self.left, self.right, tile=max(*self.left.sizes, *self.right.sizes))
        return self.left.gram_blocks(self.right, plan=plan)

    def tensor(self, out: Any = None) -> Any:
        """The whole kernel: ``[N, C, M, C]``, or ``[N, M]`` for outputs ``[N]``.

        Args:
            out: a tensor, or a NumPy array (memory-mapped, too), of that shape to write to.

        Raises:
            MemoryBudgetError: it is larger than the budget, and there is no `out`. StructureError: `out` does not fit.
        """
        return self.left.gram(self.right, out)

    def to_zarr(
        self, path: str | os.PathLike[str], *, mode: Mode = "create", chunk_bytes: int | str = DEFAULT_CHUNK_BYTES
    ) -> StoredMatrix:
        """Write the kernel to a folder of the zarr format, block by block; see `ParameterJacobian.gram_to_zarr`."""
        return self.left.gram_to_zarr(path, self.right, mode=mode, chunk_bytes=chunk_bytes)

    def __repr__(self) -> str:
        rows, columns = (" x ".join(map(str, space.shapes[0])) for space in (self.out_space, self.in_space))
        return f"TangentKernel({rows} by {columns} outputs, {self.left.in_space.dim} parameters)"


@dense_rule.register(TangentKernel)
def _dense(A: TangentKernel, memory: Budget | None = None) -> Tensor:
    return A.tensor().reshape(A.shape)


@diagonal_rule.register(TangentKernel)
def _diagonal(A: TangentKernel) -> Tensor | None:
    if A.left is not A.right:
        return None
    return A.left.norms().square().flatten()


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
        outputs: an int or a list of ints: which elements of a sample's (flattened) output; default all. An integer
            tensor ``[N]`` or ``[N, k]``: each sample's own.
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
    left = _jacobian(resolved, data, outputs, memory)
    return TangentKernel(left, left if data2 is None else _jacobian(resolved, data2, outputs, memory), memory)


def _jacobian(model: Model, data: Any, outputs: Outputs, memory: Budget | None) -> DataJacobian:
    if isinstance(data, list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        remedy = "pass the tuple (inputs, targets), or two batches with their targets: [(inputs, targets), ...]"
        raise DataError(_ASKED, "a list of two tensors, which may be inputs and targets or two batches", remedy)
    is_batch = isinstance(data, (Tensor, dict)) or is_one_batch(data)
    batches: Iterable[Any] = [data] if is_batch else data
    return DataJacobian(Recipe(model, None, Asked(_ASKED, own_outputs(outputs))), batches, memory)
