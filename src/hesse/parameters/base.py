"""What the Jacobian of one batch and that of a data set have in common."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from hesse.core.chunk_store import Mode
from hesse.core.chunk_store_layout import DEFAULT_CHUNK_BYTES, ArrayLayout
from hesse.core.errors import StructureError
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.core.space import require_full
from hesse.core.tree import Tree
from hesse.linalg.dense import dense_rule
from hesse.linalg.diagonal import column_squares_rule
from hesse.linalg.woodbury import gram_rule
from hesse.operators.base import LinearOperator
from hesse.operators.copies import ReadsInPlace
from hesse.parameters.contractions.moments import Approximation, Moments
from hesse.parameters.selection import Names

if TYPE_CHECKING:
    from hesse.operators.projections import RandomProjection
    from hesse.parameters.gram_blocks import Block
    from hesse.parameters.gram_plan import GramPlan, Task
    from hesse.parameters.jacobian import ParameterJacobian
    from hesse.parameters.recipe import Recipe
    from hesse.parameters.storing.matrix import StoredMatrix

Per = Literal["parameter", "layer"] | None
Result = TypeVar("Result")


class JacobianBySample(ReadsInPlace, LinearOperator):
    """The derivative of every sample's loss (or output) by every parameter; N samples, C elements of a sample's output.

    Attributes:
        params: the parameters, a tree.
        memory: the budget for what is written out.
        count: N.
        sizes: samples of each block.
        additive: whether the losses of two batches add up (reduction "sum") instead of averaging by mass.
    """

    params: Tree
    memory: Budget | None
    count: int
    sizes: tuple[int, ...]
    additive: bool

    @property
    @abstractmethod
    def recipe(self) -> Recipe | None:
        """How a batch's Jacobian is made; None where it was not made from a model, a loss and a batch."""

    @property
    @abstractmethod
    def hashes(self) -> Tensor | None:
        """What the content of every sample hashes to, in their order: int64 ``[N]`` (`core.fingerprint`)."""

    @property
    @abstractmethod
    def paths(self) -> dict[str, str]:
        """Name -> how the rows of a parameter are found."""

    @property
    @abstractmethod
    def samples_at_once(self) -> int | None:
        """Into parts of how many samples `blocks` splits larger batches, to keep to the memory budget; None: not at all."""

    @abstractmethod
    def blocks(
        self, skip: Callable[[slice], bool] | None = None, *, at_once: int | None = None
    ) -> Iterator[tuple[slice, ParameterJacobian]]:
        """The Jacobian block by block: which samples, and their Jacobian.

        Args:
            skip: of which samples nothing is computed; they are read and checked.
            at_once: samples of a block, at most; batches of more are split. By default `samples_at_once`.
        """

    @abstractmethod
    def each(
        self, quantity: Callable[[ParameterJacobian, slice], Result], label: str, kept: int = 0
    ) -> Iterator[tuple[slice, Result]]:
        """A quantity of the Jacobian part by part, in parts that keep to the memory budget: which samples, and what it is.

        Args:
            quantity: of a part of the Jacobian, which samples these are; asked again for less of them where memory fails.
            label: how progress and errors name it.
            kept: bytes of all results together.

        Raises:
            MemoryBudgetError: the results, or the work on one sample, pass the budget.
        """

    @abstractmethod
    def norms(self, per: Per = None) -> Any:
        """2-norms of the rows."""

    @abstractmethod
    def sum_of_squares(self) -> Tree:
        """The squares of all rows, summed over samples (and outputs)."""

    @abstractmethod
    def variance(self, *, correction: int = 1) -> Tree:
        """The variance of the rows, elementwise."""

    @abstractmethod
    def clipped_sum(
        self, max_norm: float | dict[str, float], *, per_layer: bool = False, weights: Tensor | None = None
    ) -> Tree:
        """The sum of the rows, each scaled down to a norm of at most `max_norm`."""

    @abstractmethod
    def moments(self, approximation: Approximation = "expand") -> dict[str, Moments]:
        """Kronecker moments of every parameter's rows."""

    @abstractmethod
    def select(self, samples: Any = None, *, params: Names = None) -> JacobianBySample:
        """Some rows or columns."""

    @abstractmethod
    def dense(self, out: Any = None) -> Any:
        """The rows written out."""

    @abstractmethod
    def as_dict(self) -> dict[str, Tensor]:
        """The rows by parameter."""

    @abstractmethod
    def weighted_sum(self, weights: Tensor) -> Tree:
        """``Jᵀ u`` for weights ``u`` of the shape of the rows."""

    def weighted_sums(self, weights: Tensor) -> Tree:
        """``Jᵀ u`` for every ``u`` along the first axis of `weights`: a tree like the parameters with that axis in front."""
        return LinearOperator.mm(Transposed(self), weights)

    @property
    @abstractmethod
    def bytes_per_sample(self) -> int:
        """Bytes that the records of a sample take while they are held."""

    @abstractmethod
    def tiles(self) -> Callable[[slice], list[ParameterJacobian]]:
        """What captures the Jacobian of a range of samples; in several parts where its batches cannot be joined.

        Best called with increasing ranges: going back may mean a new pass over the data.
        """

    def gram(self, other: JacobianBySample | None = None, out: Any = None) -> Any:
        """Inner products of rows: ``[N, M]``, for outputs ``[N, C, M, C]`` (the empirical tangent kernel; Jacot et al. 2018).

        Args:
            other: the Jacobian of other data of the same model; by default this one.
            out: a tensor, or a NumPy array (memory-mapped, too), of the result's shape to write to.

        Returns:
            The matrix, or `out`.

        Raises:
            StructureError: `other` is by other parameters, or `out` does not fit. MemoryBudgetError: the result is larger than
                the budget, and there is no `out`.

        Cost: as `gram_blocks`.
        """
        from hesse.parameters.gram_blocks import write_gram

        return write_gram(self, self if other is None else other, out)

    def gram_blocks(
        self,
        other: JacobianBySample | None = None,
        *,
        plan: GramPlan | None = None,
        tasks: Sequence[Task] | None = None,
    ) -> Iterator[Block]:
        """The Gram matrix in blocks; of a symmetric one the lower triangle.

        Args:
            other: the Jacobian of other data of the same model; by default this one.
            plan: which blocks, and how many tiles are held; by default `gram_plan`.
            tasks: some of the plan's tasks; by default all. What comes out of a task does not depend on the others.

        Yields:
            `Block`: which rows, which columns, and the values ``[n, m]`` (``[n, C, m, C]``).

        Raises:
            StructureError: `other` is by other parameters, or the plan is for other batches. DataError: the data changed.

        Cost: ``plan.captures`` samples are captured (a forward and a backward pass without weight gradients; for outputs C of
        these); then the layers' contractions, for a layer of inputs I, outputs O and T shared positions the smaller of
        ``I O`` and ``T² (I + O)`` multiplications a pair of samples.
        """
        from hesse.parameters.gram_blocks import gram_blocks

        second = self if other is None else other
        return gram_blocks(self, second, self.gram_plan(other) if plan is None else plan, tasks)

    def gram_plan(self, other: JacobianBySample | None = None) -> GramPlan:
        """The plan of `gram_blocks` that fits the memory budget.

        Args:
            other: the Jacobian of other data of the same model; by default this one.

        Raises:
            MemoryBudgetError: two samples do not fit.
        """
        from hesse.parameters.gram_budget import plan_gram

        return plan_gram(self, self if other is None else other)

    def project(self, P: RandomProjection, out: Any = None) -> Any:
        """The rows through a random projection, ``J Pᵀ``: ``[N, k]`` (``[N, C, k]``); they are not formed all at once.

        Inner products of projected gradients stand for those of the gradients (data attribution: Park et al. 2023, "TRAK").

        Args:
            P: a projection of the parameters: ``hesse.random_projection(J, k)``.
            out: a tensor, or a NumPy array, of the result's shape and of the dtype of `P` to write to.

        Returns:
            The projected rows in the dtype of `P`, or `out`. A row does not depend on the other samples, up to rounding; the
            same batches give the same bits with the same number of threads, where no budget makes it measure parts of them.

        Raises:
            StructureError: `P` is no random projection of these parameters, or `out` does not fit. MemoryBudgetError: the
                result is larger than the budget, and there is no `out`.

        Cost: for each batch, forming the rows as `dense` does, and the products of `P` with them (see `random_projection`): one
            to two gradients for convolutions, tens to hundreds for wide linear layers, whose own gradients are cheap. The
            columns of `P` are made once for up to 256 rows.
        """
        from hesse.parameters.projecting import project

        return project(self, P, out)

    def zarr_layout(
        self, *, projection: RandomProjection | None = None, chunk_bytes: int | str = DEFAULT_CHUNK_BYTES
    ) -> ArrayLayout:
        """What `to_zarr` would write: printed, the shape, the chunks and the size; ``.nbytes`` is exact. Nothing is computed.

        Args:
            projection, chunk_bytes: as for `to_zarr`.
        """
        from hesse.parameters.storing.rows import rows_layout

        return rows_layout(self, projection, chunk_bytes)

    def to_zarr(
        self,
        path: str | os.PathLike[str],
        *,
        projection: RandomProjection | None = None,
        mode: Mode = "create",
        chunk_bytes: int | str = DEFAULT_CHUNK_BYTES,
    ) -> StoredMatrix:
        """Write the rows ``[N, D]`` (``[N, C, D]``) to a folder of the zarr format, chunk by chunk, with progress.

        A chunk appears complete or not at all; a run that was killed is gone on with by ``mode="resume"``, and gives the same
        bits as one that was not.

        Args:
            path: of the folder, ``"gradients.zarr"``.
            projection: write ``J Pᵀ`` ``[N, k]`` instead of the rows: ``hesse.random_projection(J, k)``.
            mode: "create" refuses a folder with anything in it; "resume" goes on with what is there, or begins. Nothing is
                overwritten.
            chunk_bytes: of a chunk, at most: a number, or a text such as ``"64MiB"``.

        Returns:
            The rows on disk: a `StoredMatrix`, which reads lazily; `hesse.open_zarr` opens it later.

        Raises:
            StoreError: something is there; another writer is at work; the disk has less room than is needed, or gets full.
            DataError: other parameters, data, settings, versions or threads than the folder was begun with, or other bits;
            `core.errors` for the rest: MemoryBudgetError, UnsupportedError, MissingExtraError, as the names say.

        Cost: one pass over the data: a forward and a backward pass without weight gradients for each batch (outputs: C of
            these), writing out, and the disk. A resumed run reads what is there (its checksums; damaged chunks are written
            anew) and, unless all is there, computes one part again to compare; batches that are there are not computed.
        """
        from hesse.parameters.storing.matrix import open_zarr
        from hesse.parameters.storing.rows import write_rows

        write_rows(self, path, projection, mode=mode, chunk_bytes=chunk_bytes)
        return open_zarr(path, device=self.in_space.device)

    def gram_to_zarr(
        self,
        path: str | os.PathLike[str],
        other: JacobianBySample | None = None,
        *,
        mode: Mode = "create",
        chunk_bytes: int | str = DEFAULT_CHUNK_BYTES,
    ) -> StoredMatrix:
        """Write inner products of rows, ``[N, M]`` (``[N, C, M, C]``), to a folder of the zarr format, block by block.

        Args:
            path, mode, chunk_bytes: as for `to_zarr`.
            other: the Jacobian of other data of the same model; by default this one, whose matrix is computed by halves and
                written whole.

        Returns:
            The matrix on disk, an operator.

        Raises:
            StructureError: `other` is by other parameters. Others as `to_zarr`.

        Cost: as `gram_blocks`, and the disk.
        """
        from hesse.parameters.storing.gram import write_gram
        from hesse.parameters.storing.matrix import open_zarr

        write_gram(self, path, other, mode=mode, chunk_bytes=chunk_bytes)
        return open_zarr(path, device=self.in_space.device)

    def mean(self) -> Tree:
        """The mean of all rows, a tree like the parameters (without the loss's normalizer: divide by `mass` for that)."""
        return self.weighted_sum(self._ones() / self.out_space.dim)

    def as_tree(self) -> Tree:
        """The rows as a tree like the parameters, with leaves ``[N, *shape]`` (``[N, C, *shape]``)."""
        return self.in_space.rebuild(list(self.as_dict().values()))

    def transpose(self) -> LinearOperator:
        return Transposed(self)

    def _ones(self) -> Tensor:
        return torch.ones(self.out_space.shapes[0], dtype=self.out_space.dtype, device=self.out_space.device)

    def _check_weights(self, weights: Tensor) -> Tensor:
        require_full(weights, "A vector of weights of rows")
        if tuple(weights.shape) != tuple(self.out_space.shapes[0]):
            raise StructureError(
                "Weights of rows have the shape of the rows.",
                f"{tuple(weights.shape)} instead of {tuple(self.out_space.shapes[0])}",
                "pass one weight a row",
            )
        return weights

    def _require_room(self) -> None:
        size = self.out_space.dim * self.in_space.dim * self.in_space.dtype.itemsize
        budget = current_budget(self.memory, self.in_space.device)
        chunk_size(1, size, 0, budget, f"a dense {self.shape[0]} x {self.shape[1]} Jacobian")


def require_same_parameters(first: JacobianBySample, second: JacobianBySample) -> None:
    """Refuse inner products of Jacobians by other parameters.

    Raises:
        StructureError: their spaces differ.
    """
    if first.in_space != second.in_space:
        raise StructureError(
            "gram(other) needs Jacobians by the same parameters.", f"{second.in_space}", "same model, same params="
        )


class Transposed(LinearOperator):
    """The transpose of a parameter Jacobian: weighted sums of rows."""

    def __init__(self, jacobian: JacobianBySample) -> None:
        self.jacobian = jacobian
        self.in_space, self.out_space = jacobian.out_space, jacobian.in_space

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The Jacobian's."""
        return self.jacobian.mass

    def mv(self, v: Tree) -> Tree:
        (weights,) = self.in_space.check(v, "weights of the rows")
        return self.jacobian.weighted_sum(weights)

    def mm(self, V: Tree) -> Tree:
        (weights,) = self.in_space.check(V, "weights of the rows", 1)
        return self.jacobian.weighted_sums(weights)

    def transpose(self) -> LinearOperator:
        return self.jacobian


@dense_rule.register(JacobianBySample)
def _dense(A: JacobianBySample, memory: Budget | None = None) -> Tensor:
    return A.dense().reshape(A.shape)


@column_squares_rule.register(JacobianBySample)
def _column_squares(J: JacobianBySample) -> Tensor:
    return J.in_space.ravel(J.sum_of_squares())


@gram_rule.register(JacobianBySample)
def _gram(J: JacobianBySample) -> Tensor:
    return J.gram().reshape(J.shape[0], J.shape[0])
