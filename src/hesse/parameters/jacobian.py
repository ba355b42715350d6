"""The parameter Jacobian: the derivative of every sample's loss (or output) by every parameter, as a structured operator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.autodiff.roots import RowFacts, Rows
from hesse.core import pages, tree
from hesse.core.batching import slices
from hesse.core.errors import StructureError
from hesse.core.fingerprint import sample_hashes
from hesse.core.memory import Budget, given_budget
from hesse.core.names import layer_of
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.parameters import contractions
from hesse.parameters.base import JacobianBySample, Per, require_same_parameters
from hesse.parameters.contractions import Moments, Use
from hesse.parameters.contractions.moments import Approximation
from hesse.parameters.inner_products import inner_products
from hesse.parameters.recipe import Recipe
from hesse.parameters.selection import Names, chosen_names, chosen_samples
from hesse.parameters.source import Kept, Selected, Source, source_of
from hesse.parameters.writing import differentiable_rows, target_of, write

Result = TypeVar("Result")
_WORK = 2**26  # bytes that the contractions of a Gram matrix take at most, besides its own copies
_COPIES = 6


class ParameterJacobian(JacobianBySample):
    """The Jacobian of a model's losses (or outputs) by sample, with respect to its parameters; made by `parameter_jacobian`.

    N samples, C elements of a sample's output (absent for a loss), D parameters. Nothing of size N x D is formed, except by
    `dense`, `as_dict` and `as_tree`.

    Attributes:
        additive: whether the losses of two batches add up (reduction "sum") instead of averaging by mass.
    """

    def __init__(
        self,
        source: Source,
        facts: RowFacts,
        params: Tree,
        memory: Budget | None = None,
        recipe: Recipe | None = None,
        batch: Any = None,
    ) -> None:
        self.in_space = Space.of(params)
        self.out_space = Space.of(torch.empty(facts.shape, dtype=facts.dtype, device=facts.device))
        self.source, self.facts, self.memory, self.count = source, facts, memory, source.count
        self.additive = facts.additive
        self.params, self.sizes, self._recipe, self._batch = params, (source.count,), recipe, batch
        self._dtypes = dict(zip(self.in_space.names, self.in_space.dtypes, strict=True))
        self._shapes = dict(zip(self.in_space.names, self.in_space.shapes, strict=True))

    @classmethod
    def of(
        cls, rows: Rows, params: Tree, memory: Budget | None = None, recipe: Recipe | None = None, batch: Any = None
    ) -> ParameterJacobian:
        """The Jacobian behind captured rows (of a batch, captured by a recipe)."""
        shapes = {name: leaf.shape for name, leaf in tree.named_leaves(params)}
        return cls(source_of(rows, shapes), rows.facts, params, memory, recipe, batch)

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The normalizer of the loss: the gradient of the batch loss is ``J.T @ ones / J.mass``."""
        return float(self.facts.mass)

    @property
    def normalizer(self) -> Tensor:
        """`mass` as a 0-d tensor of float64, which Python does not read: a record of `compile_rows` serves all values."""
        return torch.as_tensor(self.facts.mass, dtype=torch.float64, device=self.facts.device)

    @property
    def recipe(self) -> Recipe | None:
        """How it was made; None where it was not made from a model, a loss and a batch."""
        return self._recipe

    @property
    def hashes(self) -> Tensor | None:
        """What the content of every sample hashes to: int64 ``[N]``; None without a recipe."""
        return None if self.recipe is None else sample_hashes(*self.recipe.read(self._batch))

    @property
    def samples_at_once(self) -> int | None:
        """None: what is captured need not be split."""
        return None

    def blocks(
        self, skip: Callable[[slice], bool] | None = None, *, at_once: int | None = None
    ) -> Iterator[tuple[slice, ParameterJacobian]]:
        """Selections of so many samples, by default one of all; see `JacobianBySample.blocks`."""
        for part in slices(self.count, at_once or self.count):
            if skip is None or not skip(part):
                yield part, self.tiles()(part)[0]

    def each(
        self, quantity: Callable[[ParameterJacobian, slice], Result], label: str, kept: int = 0
    ) -> Iterator[tuple[slice, Result]]:
        """The quantity of all samples at once, which are captured already."""
        whole = slice(0, self.count)
        yield whole, quantity(self, whole)

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of the records of a sample; 0 where they are not held."""
        return (self.held_bytes or 0) // self.count

    def tiles(self) -> Callable[[slice], list[ParameterJacobian]]:
        """Selections of samples."""
        return lambda part: [self if part == slice(0, self.count) else self.select(part)]

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

    def norms(self, per: Per = None) -> Any:
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

    def gram(self, other: JacobianBySample | None = None, out: Any = None) -> Any:
        """Inner products of rows: ``[N, M]``, for outputs ``[N, C, M, C]`` (the empirical tangent kernel; Jacot et al. 2018).

        Args:
            other: the Jacobian of another batch, or data set, of the same model; by default this one.
            out: a tensor, or a NumPy array (memory-mapped, too), of the result's shape to write to.

        Raises:
            StructureError: `other` is by other parameters, or `out` does not fit.
        """
        if out is not None or not (other is None or isinstance(other, ParameterJacobian)) or self._is_by_tiles(other):
            return super().gram(other, out)
        return self.inner(other)

    def _is_by_tiles(self, other: ParameterJacobian | None) -> bool:
        """Whether the copies of a Gram matrix at its making may not fit into a budget that somebody has set."""
        given = given_budget(self.memory, self.in_space.device)
        second = self if other is None else other
        if given is None or self.facts.attached or second.facts.attached or self.held_bytes is None:
            return False
        return _WORK + _COPIES * self.out_space.dim * second.out_space.dim * self._zeros().itemsize > given

    def inner(self, other: ParameterJacobian | None = None) -> Tensor:
        """Inner products of rows, all at once; see `gram`."""
        second = self if other is None else other
        require_same_parameters(self, second)
        zeros = self._zeros(self.count * self.source.roots, second.count * second.source.roots)
        result = inner_products(self.source, second.source, self._shapes, zeros)
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
        recipe = None if self.recipe is None or index is not None else self.recipe.restricted(names)
        return ParameterJacobian(source, facts, kept, self.memory, recipe, self._batch)

    def dense(self, out: Any = None) -> Any:
        """The rows written out: ``[N, D]`` (``[N, C, D]``), columns in the order of the parameters.

        Args:
            out: a tensor of that shape, dtype and device to write to (re-used memory costs no page faults), or a NumPy array
                (memory-mapped, too).

        Returns:
            The rows, or `out`.

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
        target = target_of(out, shape, self.in_space.dtype, self.in_space.device, "dense")
        flat = target.reshape(self.count, self.source.roots, width)
        table = flat if flat.data_ptr() == target.data_ptr() else torch.empty_like(flat)  # strides that no view can merge
        starts = [0, *itertools.accumulate(leaf.numel() for leaf in self._shapes.values())]
        write(self.source, {name: table[:, :, a:b] for name, a, b in zip(self._shapes, starts, starts[1:], strict=False)})
        if table is not flat:
            target.copy_(table.reshape(shape))
        return out

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

    def mv(self, v: Tree) -> Tree:
        parts = dict(zip(self._shapes, self.in_space.check(v, "vector"), strict=True))
        found = self._by_row(lambda name, use: contractions.rows_times(use, parts[name]), lambda name: "")
        return found[""].to(self.out_space.dtype)

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
