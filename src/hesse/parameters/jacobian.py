"""The parameter Jacobian: the derivative of every sample's loss (or output) by every parameter, as a structured operator."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.roots import RowFacts, Rows
from hesse.core import pages, tree
from hesse.core.errors import StructureError
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.core.names import layer_of
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.linalg.dense import dense_rule
from hesse.linalg.diagonal import column_squares_rule
from hesse.linalg.woodbury import gram_rule
from hesse.operators.base import LinearOperator
from hesse.parameters import contractions
from hesse.parameters.contractions import Moments, Use
from hesse.parameters.contractions.moments import Approximation
from hesse.parameters.selection import Names, chosen_names, chosen_samples
from hesse.parameters.source import Kept, Selected, Source, source_of
from hesse.parameters.writing import differentiable_rows, require_fit, write
from hesse.rules.forms import Dense


class ParameterJacobian(LinearOperator):
    """The Jacobian of a model's losses (or outputs) by sample, with respect to its parameters; made by `parameter_jacobian`.

    N samples, C elements of a sample's output (absent for a loss), D parameters. Nothing of size N x D is formed, except by
    `dense`, `as_dict` and `as_tree`.

    Attributes:
        mass: the normalizer of the loss: the gradient of the batch loss is ``J.T @ ones / J.mass``.
        additive: whether the losses of two batches add up (reduction "sum") instead of averaging by mass.
    """

    def __init__(self, source: Source, facts: RowFacts, params: Tree, memory: Budget | None = None) -> None:
        self.in_space = Space.of(params)
        self.out_space = Space.of(torch.empty(facts.shape, dtype=facts.dtype, device=facts.device))
        self.source, self.facts, self.memory, self.count = source, facts, memory, source.count
        self.mass, self.additive = facts.mass, facts.additive
        self.params = params
        self._dtypes = dict(zip(self.in_space.names, self.in_space.dtypes, strict=True))
        self._shapes = dict(zip(self.in_space.names, self.in_space.shapes, strict=True))

    @classmethod
    def of(cls, rows: Rows, params: Tree, memory: Budget | None = None) -> ParameterJacobian:
        """The Jacobian behind captured rows."""
        shapes = {name: leaf.shape for name, leaf in tree.named_leaves(params)}
        return cls(source_of(rows, shapes), rows.facts, params, memory)

    @property
    def paths(self) -> dict[str, str]:
        """Name -> how the rows of a parameter were found.

        "rule": two factors a sample, or fewer numbers than the layer's output; "masked": the node's own backward, a call a
        sample; "chained": the parameter's weight is a function of it, and rows are brought back a few at a time; "sample by
        sample": every sample alone; "unused".
        """
        return self.source.paths

    @property
    def held_bytes(self) -> int | None:
        """Bytes of the records that are kept; None where there are none ("streamed" ones)."""
        return self.source.held_bytes

    def _zeros(self, *shape: int) -> Tensor:
        dtype = torch.float32 if self.out_space.dtype in (torch.float16, torch.bfloat16) else self.out_space.dtype
        return torch.zeros(shape, dtype=dtype, device=self.out_space.device)

    def _by_row(self, quantity: Callable[[str, Use], Tensor], group: Callable[[str], str]) -> dict[str, Tensor]:
        """A number of every row and parameter, added up over groups of parameters: group -> the shape of the rows."""
        parts: dict[str, list[list[Tensor]]] = {group(name): [[] for _ in range(self.source.roots)] for name in self._shapes}
        self.source.visit(lambda root, name, use: parts[group(name)][root].append(quantity(name, use)))
        found = {key: torch.stack([self._total(terms) for terms in roots], 1) for key, roots in parts.items()}
        return {key: rows.reshape(self.out_space.shapes[0]) for key, rows in found.items()}

    def _total(self, terms: list[Tensor]) -> Tensor:
        if not terms:
            return self._zeros(self.count)
        return terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)

    def _by_parameter(self, quantity: Callable[[int, str, Use], Tensor]) -> Tree:
        """A tensor of every parameter's size, added up over roots: a tree like the parameters."""
        parts: dict[str, Tensor] = {}

        def take(root: int, name: str, use: Use) -> None:
            part = quantity(root, name, use)
            parts[name] = parts[name] + part if name in parts else part

        self.source.visit(take)
        return self._tree(parts)

    def _tree(self, parts: dict[str, Tensor]) -> Tree:
        """A tree like the parameters, zero where no part is."""
        leaves = []
        for name, shape in self._shapes.items():
            part = parts[name] if name in parts else self._zeros(shape.numel())
            leaves.append(part.reshape(shape).to(self._dtypes[name]))
        return self.in_space.rebuild(leaves)

    def norms(self, per: Literal["parameter", "layer"] | None = None) -> Any:
        """2-norms of the rows: ``[N]`` (``[N, C]``), or a dict of them by name of the parameter or of the layer.

        Args:
            per: "layer" takes the parameters of one module together; its name is the module's ("" for the model itself).

        Cost: no backward pass; contractions of the size of the layers' own.
        """
        groups: dict[Any, Callable[[str], str]] = {None: lambda name: "", "parameter": str, "layer": layer_of}
        if per not in groups:
            raise StructureError("norms(per=...) takes None, 'parameter' or 'layer'.", repr(per), "pass one of these")
        squares = self._by_row(lambda name, use: contractions.squared_norms(use, self._shapes[name].numel()), groups[per])
        found = {key: _root(square).to(self.out_space.dtype) for key, square in squares.items()}
        return found[""] if per is None else found

    def sum_of_squares(self) -> Tree:
        """The squares of all rows, summed over samples (and outputs): the diagonal of JᵀJ, a tree like the parameters."""
        sums: dict[str, contractions.SquaresOverRoots] = {}

        def take(root: int, name: str, use: Use) -> None:
            if name not in sums:
                sums[name] = contractions.SquaresOverRoots(self._shapes[name].numel(), self.source.roots)
            sums[name].add(use)

        self.source.visit(take)
        return self._tree({name: total.result() for name, total in sums.items()})

    def mean(self) -> Tree:
        """The mean of all rows, a tree like the parameters (without the loss's normalizer: divide by `mass` for that)."""
        return self.weighted_sum(self._ones() / self.out_space.dim)

    def variance(self, *, correction: int = 1) -> Tree:
        """The variance of the rows, elementwise: a tree like the parameters.

        Args:
            correction: the sum of squared distances from the mean is divided by (number of rows - correction), as in
                `torch.var`.

        Cost: the rows are formed a few at a time, twice as much work as `sum_of_squares` for layers without shared positions.
        """
        rows = self.out_space.dim
        total = dict(tree.named_leaves(self.weighted_sum(self._ones())))
        means = {name: leaf.flatten().to(self._zeros(0).dtype) / rows for name, leaf in total.items()}
        used = dict.fromkeys(self._shapes, 0)

        def distances(root: int, name: str, use: Use) -> Tensor:
            used[name] += self.count
            return contractions.squared_distances(use, means[name], self._shapes[name].numel())

        found = dict(tree.named_leaves(self._by_parameter(distances)))
        unused = {name: (rows - used[name]) * mean.square() for name, mean in means.items()}
        parts = [leaf + unused[name].reshape(leaf.shape).to(leaf.dtype) for name, leaf in found.items()]
        return self.in_space.rebuild([part / (rows - correction) if rows > correction else part * torch.nan for part in parts])

    def _ones(self) -> Tensor:
        return torch.ones(self.out_space.shapes[0], dtype=self.out_space.dtype, device=self.out_space.device)

    def clipped_sum(
        self, max_norm: float | dict[str, float], *, per_layer: bool = False, weights: Tensor | None = None
    ) -> Tree:
        """The sum of the rows, each scaled down to a norm of at most `max_norm`: a tree like the parameters.

        Differentially private SGD adds noise to it (Abadi et al. 2016); the scaled rows are never formed.

        Args:
            max_norm: the bound C: a row of norm r is multiplied by ``min(1, C / r)``. With `per_layer` one bound for every
                layer, or a dict by layer.
            per_layer: whether the parts of a row that belong to different modules are clipped on their own.
            weights: of the rows, of their shape; multiplied in after clipping.

        Raises:
            StructureError: a bound that is not positive, a dict without some layer, weights of another shape.

        Cost: no backward pass; `norms` and one weighted sum.
        """
        norms = self.norms("layer") if per_layer else {"": self.norms()}
        bounds = max_norm if isinstance(max_norm, dict) else dict.fromkeys(norms, max_norm)
        if set(bounds) != set(norms) or not all(bound > 0 for bound in bounds.values()):
            raise StructureError(
                "clipped_sum(max_norm) takes a positive bound (with per_layer=True also one for every layer).",
                f"{max_norm!r}" + (f" for the layers {list(norms)}" if isinstance(max_norm, dict) else ""),
                "pass max_norm > 0, or {layer: bound} with per_layer=True",
            )
        weights = self._ones() if weights is None else self._check_weights(weights)
        scales = {key: weights * (bounds[key] / norm).clamp(max=1).to(norm.dtype) for key, norm in norms.items()}
        return self._weighted(lambda name: scales[layer_of(name) if per_layer else ""])

    def gram(self, other: ParameterJacobian | None = None) -> Tensor:
        """Inner products of rows: ``[N, M]``, for outputs ``[N, C, M, C]`` (the empirical tangent kernel; Jacot et al. 2018).

        Args:
            other: the Jacobian of another batch of the same model; by default this one.

        Raises:
            StructureError: `other` is by other parameters.
        """
        second = self if other is None else other
        if self.in_space != second.in_space:
            raise StructureError(
                "gram(other) needs Jacobians by the same parameters.", f"{second.in_space}", "same model, same params="
            )
        result, known = self._zeros(self.count * self.source.roots, second.count * second.source.roots), {}

        def add(name: str, use: Use, others: Use) -> None:
            nonlocal result
            part = contractions.gram(use, others, self._shapes[name].numel(), known)
            result = result + part if part.requires_grad else result.add_(part)

        if self.source.roots == 1 and second is self:
            self.source.visit(lambda root, name, use: add(name, use, use))
        else:
            zero = self._zeros(1)
            uses = _stacked(self.source.collect(), self._shapes, zero)
            pairs = uses if second is self else _stacked(second.source.collect(), self._shapes, zero)
            for name, others in pairs.items():
                if name in uses:
                    add(name, uses[name], others)
        if second is self:
            result = result.tril() + result.tril(-1).mT
        by_root = result.reshape(self.source.roots, self.count, second.source.roots, second.count).permute(1, 0, 3, 2)
        return by_root.reshape(*self.out_space.shapes[0], *second.out_space.shapes[0]).to(self.out_space.dtype)

    def moments(self, approximation: Approximation = "expand") -> dict[str, Moments]:
        """Kronecker moments of every parameter's rows: name -> `Moments`, whose product approximates the parameter's JᵀJ.

        Args:
            approximation: "expand" takes every shared position (of a convolution, a sequence) as a sample of its own,
                "reduce" adds up positions first (Eschenhagen et al. 2023).

        Raises:
            UnsupportedError: a parameter whose rows are no products of factors; `select` the others.

        Cost: no backward pass; for a layer of inputs I and outputs O, I² + O² multiplications a position.
        """
        parts: dict[str, list[Moments]] = {}
        self.source.visit(
            lambda root, name, use: parts.setdefault(name, []).append(contractions.moments(use, name, approximation))
        )
        return {name: contractions.add_moments(roots) for name, roots in parts.items()}

    def select(self, samples: Any = None, *, params: Names = None) -> ParameterJacobian:
        """The rows of some samples, the columns of some parameters, or both; nothing is computed again.

        Args:
            samples: a slice, a list of numbers, an integer tensor, or a boolean one ``[N]``.
            params: names, or a predicate ``(name, tensor) -> bool``.

        Returns:
            A Jacobian with the same `mass`: that of the whole batch.

        Raises:
            StructureError: a sample or a name that is not there, or nothing left.
        """
        named = dict(tree.named_leaves(self.params))
        index, names = chosen_samples(samples, self.count), chosen_names(params, named)
        source = Selected(self.source, names, None if index is None else index.to(self.facts.device))
        facts = replace(self.facts, shape=torch.Size((source.count, *self.facts.shape[1:])))
        kept = self.params if params is None else {name: named[name] for name in names}
        return ParameterJacobian(source, facts, kept, self.memory)

    def dense(self, out: Tensor | None = None) -> Tensor:
        """The rows written out: ``[N, D]`` (``[N, C, D]``), columns in the order of the parameters.

        Args:
            out: a tensor of that shape, dtype and device to write to (re-used memory costs no page faults).

        Raises:
            StructureError: `out` does not fit. MemoryBudgetError: the result is larger than the budget.
        """
        width, shape = self.in_space.dim, (*self.facts.shape, self.in_space.dim)
        if self.facts.attached:
            if out is not None:
                raise StructureError("dense(out=) writes numbers.", "create_graph=True", "leave out= away")
            return torch.cat([rows.reshape(*self.facts.shape, -1) for rows in self.as_dict().values()], -1)
        if out is None:
            self._require_room()
            out = pages.empty(shape, self.in_space.dtype, self.in_space.device)
        require_fit(out, shape, self.in_space.dtype, self.in_space.device)
        flat = out.detach().reshape(self.count, self.source.roots, width)
        table = flat if flat.data_ptr() == out.data_ptr() else torch.empty_like(flat)  # strides that no view can merge
        starts = [0, *itertools.accumulate(leaf.numel() for leaf in self._shapes.values())]
        write(self.source, {name: table[:, :, a:b] for name, a, b in zip(self._shapes, starts, starts[1:], strict=False)})
        return out if table is flat else out.copy_(table.reshape(shape))

    def _require_room(self) -> None:
        size = self.out_space.dim * self.in_space.dim * self.in_space.dtype.itemsize
        budget = current_budget(self.memory, self.in_space.device)
        chunk_size(1, size, 0, budget, f"a dense {self.shape[0]} x {self.shape[1]} Jacobian")

    def as_dict(self) -> dict[str, Tensor]:
        """The rows by parameter: name -> ``[N, *shape]`` (``[N, C, *shape]``)."""
        self._require_room()
        sizes = {name: shape.numel() for name, shape in self._shapes.items()}
        if self.facts.attached:
            tables = differentiable_rows(self.source, sizes, self._zeros(0))
        else:
            shape, device = (self.count, self.source.roots), self.in_space.device
            tables = {n: pages.empty((*shape, size), self._dtypes[n], device) for n, size in sizes.items()}
            write(self.source, tables)
        return {name: table.reshape(*self.facts.shape, *self._shapes[name]) for name, table in tables.items()}

    def as_tree(self) -> Tree:
        """The rows as a tree like the parameters, with leaves ``[N, *shape]`` (``[N, C, *shape]``)."""
        return self.in_space.rebuild(list(self.as_dict().values()))

    def mv(self, v: Tree) -> Tree:
        parts = dict(zip(self._shapes, self.in_space.check(v, "vector"), strict=True))
        found = self._by_row(lambda name, use: contractions.rows_times(use, parts[name]), lambda name: "")
        return found[""].to(self.out_space.dtype)

    def transpose(self) -> LinearOperator:
        return _Transposed(self)

    def _check_weights(self, weights: Tensor) -> Tensor:
        if tuple(weights.shape) != tuple(self.out_space.shapes[0]):
            raise StructureError(
                "Weights of rows have the shape of the rows.",
                f"{tuple(weights.shape)} instead of {tuple(self.out_space.shapes[0])}",
                "pass one weight a row",
            )
        return weights

    def weighted_sum(self, weights: Tensor) -> Tree:
        """``Jᵀ u`` for weights ``u`` of the shape of the rows: a tree like the parameters."""
        self._check_weights(weights)
        return self._weighted(lambda name: weights)

    def _weighted(self, weights: Callable[[str], Tensor]) -> Tree:
        def part(root: int, name: str, use: Use) -> Tensor:
            table = weights(name).reshape(self.count, -1)
            return contractions.weighted_sum(use, table[:, root], self._shapes[name].numel())

        return self._by_parameter(part)

    def __repr__(self) -> str:
        rows = " x ".join(str(size) for size in self.out_space.shapes[0])
        how = f"; paths: {', '.join(sorted(set(self.paths.values())))}" if isinstance(self.source, Kept) else ""
        return f"ParameterJacobian({rows} x {self.in_space.dim} of the {self.facts.of} by {len(self._shapes)} parameters{how})"


def _root(square: Tensor) -> Tensor:
    """A square root whose derivative at zero is zero, so that a row of zeros stays without influence."""
    if not square.requires_grad:
        return square.sqrt()
    positive = square > 0
    return torch.where(positive, square.where(positive, 1).sqrt(), 0)


def _stacked(roots: list[dict[str, Use]], shapes: dict[str, torch.Size], zero: Tensor) -> dict[str, Use]:
    """The uses of every parameter in all roots, one root after the other."""
    names = [name for name in shapes if any(name in uses for uses in roots)]
    count = next((use.count for uses in roots for use in uses.values()), 0)
    nothing = {name: Dense(zero.expand(count, shapes[name].numel())) for name in names}
    return {name: contractions.stack([uses.get(name, nothing[name]) for uses in roots]) for name in names}


@dense_rule.register(ParameterJacobian)
def _dense(A: ParameterJacobian, memory: Budget | None = None) -> Tensor:
    return A.dense().reshape(A.shape)


@column_squares_rule.register(ParameterJacobian)
def _column_squares(J: ParameterJacobian) -> Tensor:
    return J.in_space.ravel(J.sum_of_squares())


@gram_rule.register(ParameterJacobian)
def _gram(J: ParameterJacobian) -> Tensor:
    return J.gram().reshape(J.shape[0], J.shape[0])


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
