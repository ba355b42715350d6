"""`parameter_jacobian`: the derivative of every sample's loss (or output) by every parameter, as a structured operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.model import Selection, as_model
from hesse.autodiff.roots import Loss, Rows, capture_rows
from hesse.core import tree
from hesse.core.errors import DataError, StructureError
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.linalg.dense import dense_rule
from hesse.linalg.diagonal import column_squares_rule
from hesse.operators.base import LinearOperator
from hesse.parameters import contractions
from hesse.parameters.contractions import Use


class ParameterJacobian(LinearOperator):
    """The Jacobian of a model's losses (or outputs) by sample, with respect to its parameters; made by `parameter_jacobian`.

    N samples, C elements of a sample's output (absent for a loss), D parameters. Nothing of size N x D is formed, except by
    `dense`, `as_dict` and `as_tree`.

    Attributes:
        mass: the normalizer of the loss: the gradient of the batch loss is ``J.T @ ones / J.mass``.
        additive: whether the losses of two batches add up (reduction "sum") instead of averaging by mass.
        paths: name -> how the rows of a parameter are represented ("rule", "masked", "pulled back", "sample by sample",
            "unused").
    """

    def __init__(self, rows: Rows, params: Tree, memory: Budget | None = None) -> None:
        self.in_space = Space.of(params)
        self.out_space = Space.of(torch.empty(rows.shape, dtype=rows.dtype, device=rows.device))
        self.mass, self.additive, self.paths = rows.mass, rows.additive, dict(rows.captured[0].paths) if rows.captured else {}
        self.memory, self.count = memory, rows.count
        self._dtypes = dict(zip(self.in_space.names, self.in_space.dtypes, strict=True))
        self._shapes = dict(zip(self.in_space.names, self.in_space.shapes, strict=True))
        self._merged: list[dict[str, Use]] = [
            {name: contractions.merge(forms, self._shapes[name]) for name, forms in root.forms.items() if forms}
            for root in rows.captured
        ]

        read = contractions.tensors_in([use for uses in self._merged for use in uses.values()])
        self._versions = [(tensor, tensor._version) for tensor in read if not tensor.is_inference()]

    @property
    def _uses(self) -> list[dict[str, Use]]:
        """The uses of the parameters by root, which read the batch's own tensors."""
        if any(tensor._version != version for tensor, version in self._versions):
            raise DataError(
                "A parameter Jacobian reads the batch that it was made from.",
                "an input that was changed in place since then",
                "ask for its quantities first, or make the Jacobian of a copy of the batch",
            )
        return self._merged

    @property
    def is_of_loss(self) -> bool:
        """Whether rows are gradients of losses (``[N]``) or outputs (``[N]``), rather than of vectors (``[N, C]``)."""
        return len(self.out_space.shapes[0]) == 1

    def _by_root(self, quantity: Callable[[dict[str, Use]], Tensor]) -> Tensor:
        """A quantity ``[N, ...]`` of each root, stacked to the shape of the rows."""
        parts = [quantity(uses) for uses in self._uses]
        stacked = torch.stack(parts, 1)
        return stacked.reshape(*self.out_space.shapes[0], *stacked.shape[2:])

    def _accumulator(self, *shape: int) -> Tensor:
        dtype = torch.float32 if self.out_space.dtype in (torch.float16, torch.bfloat16) else self.out_space.dtype
        return torch.zeros(shape, dtype=dtype, device=self.out_space.device)

    def norms(self, per: Literal["parameter"] | None = None) -> Any:
        """2-norms of the rows: ``[N]`` (``[N, C]``), or with ``per="parameter"`` a dict of them by name.

        Cost: no backward pass; contractions of the size of the layers' own.
        """
        if per == "parameter":
            return {name: self._norms([name]) for name in self._shapes}
        if per is not None:
            raise StructureError("norms(per=...) takes None or 'parameter'.", repr(per), "pass one of these")
        return self._norms(list(self._shapes))

    def _norms(self, names: list[str]) -> Tensor:
        return self._by_root(lambda uses: self._squared(uses, names)).sqrt().to(self.out_space.dtype)

    def _squared(self, uses: dict[str, Use], names: list[str]) -> Tensor:
        total = self._accumulator(self.count)
        for name in names:
            if name in uses:
                total = total + contractions.squared_norms(uses[name], self._shapes[name].numel()).to(total.dtype)
        return total

    def sum_of_squares(self) -> Tree:
        """The squares of all rows, summed over samples (and outputs): the diagonal of JᵀJ, a tree like the parameters."""
        parts = []
        for name, shape in self._shapes.items():
            total = self._accumulator(shape.numel())
            for uses in self._uses:
                if name in uses:
                    total = total + contractions.summed_squares(uses[name], shape.numel())
            parts.append(total.reshape(shape).to(self._dtypes[name]))
        return self.in_space.rebuild(parts)

    def mean(self) -> Tree:
        """The mean of all rows, a tree like the parameters (without the loss's normalizer: divide by `mass` for that)."""
        ones = torch.ones(self.out_space.shapes[0], dtype=self.out_space.dtype, device=self.out_space.device)
        return tree.map_tree(lambda leaf: leaf / self.out_space.dim, self.T.mv(ones))

    def gram(self, other: ParameterJacobian | None = None) -> Tensor:
        """Inner products of rows: ``[N, M]``, for outputs ``[N, C, M, C]`` (the empirical tangent kernel; Jacot et al. 2018).

        Args:
            other: the Jacobian of another batch of the same model; by default this one.
        """
        second = self if other is None else other
        if self.in_space != second.in_space:
            raise StructureError(
                "gram(other) needs Jacobians by the same parameters.", f"{second.in_space}", "same model, same params="
            )
        result = self._accumulator(self.count, len(self._uses), second.count, len(second._uses))
        for i, uses in enumerate(self._uses):
            for j, others in enumerate(second._uses):
                if second is self and j < i:
                    result[:, i, :, j] = result[:, j, :, i].mT
                    continue
                for name in (name for name in uses if name in others):
                    block = contractions.gram(uses[name], others[name], self._shapes[name].numel())
                    result[:, i, :, j] += block.to(result.dtype)
        return result.reshape(*self.out_space.shapes[0], *second.out_space.shapes[0]).to(self.out_space.dtype)

    def dense(self, out: Tensor | None = None) -> Tensor:
        """The rows written out: ``[N, D]`` (``[N, C, D]``), columns in the order of the parameters.

        Args:
            out: a tensor of that shape, dtype and device to write to (re-used memory costs no page faults).

        Raises:
            StructureError: `out` does not fit. MemoryBudgetError: the result is larger than the budget.
        """
        width = self.in_space.dim
        shape = (*self._row_shape(), width)
        if out is None:
            self._require_room()
            out = torch.empty(shape, dtype=self.in_space.dtype, device=self.in_space.device)
        elif tuple(out.shape) != shape or out.dtype != self.in_space.dtype or out.device != self.in_space.device:
            raise StructureError(
                "dense(out=) writes into a tensor of the result's shape, dtype and device.",
                f"{tuple(out.shape)} {out.dtype} {out.device} instead of {shape} {self.in_space.dtype} {self.in_space.device}",
                "pass torch.empty(shape, dtype=..., device=...) with these, or leave it out",
            )
        table = out.detach().view(self.count, len(self._uses), width)
        start = 0
        for name, shape_ in self._shapes.items():
            size = shape_.numel()
            self._write(table[:, :, start : start + size], name, size)
            start += size
        return out

    def _require_room(self) -> None:
        size = self.out_space.dim * self.in_space.dim * self.in_space.dtype.itemsize
        budget = current_budget(self.memory, self.in_space.device)
        chunk_size(1, size, 0, budget, f"a dense {self.shape[0]} x {self.shape[1]} Jacobian")

    def _row_shape(self) -> tuple[int, ...]:
        return (self.count,) if self.is_of_loss else (self.count, len(self._uses))

    def _write(self, table: Tensor, name: str, size: int) -> None:
        for root, uses in enumerate(self._uses):
            if name not in uses:
                table[:, root] = 0
                continue
            for s in contractions.in_cache(self.count, size):
                table[s, root] = contractions.flat_rows(uses[name], s).to(table.dtype)

    def as_dict(self) -> dict[str, Tensor]:
        """The rows by parameter: name -> ``[N, *shape]`` (``[N, C, *shape]``)."""
        self._require_room()
        result = {}
        for name, shape in self._shapes.items():
            device = self.in_space.device
            table = torch.empty(self.count, len(self._uses), shape.numel(), dtype=self._dtypes[name], device=device)
            self._write(table, name, shape.numel())
            result[name] = table.reshape(*self._row_shape(), *shape)
        return result

    def as_tree(self) -> Tree:
        """The rows as a tree like the parameters, with leaves ``[N, *shape]`` (``[N, C, *shape]``)."""
        return self.in_space.rebuild(list(self.as_dict().values()))

    def mv(self, v: Tree) -> Tree:
        parts = dict(zip(self._shapes, self.in_space.check(v, "vector"), strict=True))

        def product(uses: dict[str, Use]) -> Tensor:
            total = self._accumulator(self.count)
            for name, use in uses.items():
                total = total + contractions.rows_times(use, parts[name]).to(total.dtype)
            return total

        return self._by_root(product).to(self.out_space.dtype)

    def transpose(self) -> LinearOperator:
        return _Transposed(self)

    def weighted_sum(self, weights: Tensor) -> Tree:
        """``Jᵀ u`` for weights ``u`` of the shape of the rows: a tree like the parameters."""
        table = weights.reshape(self.count, -1)
        parts = []
        for name, shape in self._shapes.items():
            total = self._accumulator(shape.numel())
            for root, uses in enumerate(self._uses):
                if name in uses:
                    total = total + contractions.weighted_sum(uses[name], table[:, root], shape.numel()).to(total.dtype)
            parts.append(total.reshape(shape).to(self._dtypes[name]))
        return self.in_space.rebuild(parts)

    def __repr__(self) -> str:
        kind = "loss" if self.is_of_loss else "output"
        paths = ", ".join(sorted(set(self.paths.values())))
        rows = " x ".join(str(size) for size in self.out_space.shapes[0])
        return (
            f"ParameterJacobian({rows} x {self.in_space.dim} of the {kind} by {len(self._shapes)} parameters; paths: {paths})"
        )


@dense_rule.register(ParameterJacobian)
def _dense(A: ParameterJacobian, memory: Budget | None = None) -> Tensor:
    return A.dense().reshape(A.shape)


@column_squares_rule.register(ParameterJacobian)
def _column_squares(J: ParameterJacobian) -> Tensor:
    return J.in_space.ravel(J.sum_of_squares())


class _Transposed(LinearOperator):
    """The transpose of a parameter Jacobian: weighted sums of rows."""

    def __init__(self, jacobian: ParameterJacobian) -> None:
        self.jacobian, self.mass = jacobian, jacobian.mass
        self.in_space, self.out_space = jacobian.out_space, jacobian.in_space

    def mv(self, v: Tree) -> Tree:
        (weights,) = self.in_space.check(v, "weights of the rows")
        return self.jacobian.weighted_sum(weights)

    def transpose(self) -> LinearOperator:
        return self.jacobian


def parameter_jacobian(
    model: Any,
    loss: Loss,
    batch: Any,
    *,
    params: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
    memory: Budget | None = None,
) -> ParameterJacobian:
    """The Jacobian of every sample's loss by the parameters (per-sample gradients), or of the outputs if `loss` is None.

    Args:
        model: an `nn.Module`, or ``(f, params)`` with ``f(params, *inputs)``. Tied, re-used, frozen and unused parameters,
            functional calls, weights that are functions of parameters, and any control flow are covered.
        loss: ``loss(output, target)``, or None for the output Jacobian. For a loss that hesse knows, row n is the gradient of
            sample n's unreduced contribution (class weights kept, ignored positions 0) and `mass` is its normalizer. For any
            other callable, row n is the gradient of ``loss(output[n:n+1], target[n:n+1])``; that the batch loss is their sum
            or mean is checked.
        batch: ``(inputs, targets)``; inputs: a tensor, a tuple of positional or a dict of keyword inputs. The first axis of
            every tensor is the batch.
        params: names of the parameters to differentiate by, or a predicate ``(name, tensor) -> bool``.
        output: picks the tensor out of what the model returns.
        memory: budget for what is written out, in bytes, as a fraction of what is free, or as text ("2GiB").

    Returns:
        A `ParameterJacobian`: ``[N, D]``, or ``[N, C, D]`` for outputs ``[N, C]``; an operator with `norms`, `gram`,
        `sum_of_squares`, `dense` and more.

    Raises:
        MixedSamplesError: samples influence each other (batch normalization in train mode, a loss that is neither sum nor
        mean of its samples). DetachedError: the graph was cut, with the line. DataError, DeviceError, NonFiniteError,
        UnsupportedError: as the names say.

    Cost: one forward pass and one backward pass without weight gradients (for outputs: C of these); quantities then cost less
    than one gradient each. The first call for a model and a shape adds about one gradient of a few samples.
    """
    asked = "parameter_jacobian(model, loss, batch) differentiates every sample by every parameter."
    resolved = as_model(model, params=params, output=output)
    return ParameterJacobian(capture_rows(resolved, loss, batch, asked), resolved.params, memory)
