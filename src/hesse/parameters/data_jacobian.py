"""The parameter Jacobian of a data set: computed batch by batch, whenever something is asked of it; no row is held."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.core import pages, tree
from hesse.core.batching import slices
from hesse.core.chunked import ChunkPlan, Experience, in_chunks
from hesse.core.errors import UnsupportedError
from hesse.core.growth import Growth
from hesse.core.guard import Guard
from hesse.core.memory import Budget, current_budget, given_budget, too_small
from hesse.core.progress import track
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.core.watch import Watch
from hesse.operators.weighted_sum import handed_out
from hesse.parameters.appetite import DOUBT, FEW, NOISE, PAIR, PART, PEAK, WHOLE, Appetite, is_small, least_for, measured
from hesse.parameters.base import JacobianBySample, Per
from hesse.parameters.batches import Batches, Reader, cut, join
from hesse.parameters.contractions import Moments, add_moments
from hesse.parameters.contractions.moments import Approximation
from hesse.parameters.jacobian import ParameterJacobian
from hesse.parameters.making import capture, linear, mass_of
from hesse.parameters.recipe import Recipe
from hesse.parameters.selection import Names, chosen_names, chosen_samples
from hesse.parameters.totals import Spread, Total
from hesse.parameters.writing import target_of

Result = TypeVar("Result")
Samples = tuple[Any, Any]

_GUARDED = (
    "The Jacobian of a data set belongs to the model and the loss that it was made with.",
    "make a new one after every change of parameters, buffers, modules, or weights of the loss",
)


class DataJacobian(JacobianBySample):
    """The Jacobian of a model's losses (or outputs) by sample over a data set; made by `parameter_jacobian`.

    Rows are in the order of the data. Every quantity is one pass over the data, in which each batch is read, compared with what
    it was at first, captured, contracted and dropped; batches too large for the memory budget are taken in parts.

    Attributes:
        additive: whether the losses of two batches add up (reduction "sum") instead of averaging by mass.
    """

    def __init__(self, recipe: Recipe, data: Iterable[Any], memory: Budget | None = None) -> None:
        self._recipe, self.memory, self.params = recipe, memory, recipe.model.params
        self._guard, model = Guard(recipe.model.reads, recipe.model.read_names), recipe.model
        self._watch = Watch(model=model.key if model.module is None else model.module, loss=recipe.loss)
        self.batches = Batches(data, recipe)
        self.sizes, self.count = tuple(self.batches.sizes), sum(self.batches.sizes)
        self.recipe.require_choices(self.count)
        few = self._capture_few(self.batches.take_example())
        self._watch.settle()
        self.additive, self._paths, self._bytes = few.additive, few.paths, few.bytes_per_sample
        self.in_space = Space.of(self.params)
        rows = torch.empty((self.count, *few.facts.shape[1:]), dtype=few.facts.dtype, device=few.facts.device)
        self.out_space = Space.of(rows)
        self._masses = torch.full((self.count,), torch.nan, dtype=torch.float64, device="cpu")  # each sample's share
        self._appetite: Appetite | None = None

    def _capture_few(self, example: Samples) -> ParameterJacobian:
        """The Jacobian of the first samples; under a budget of two, which have to fit."""
        given = given_budget(self.memory, self.recipe.model.device)
        part = slice(0, min(FEW if given is None else PAIR, self.sizes[0]))
        samples, recipe = cut(example, part), self.recipe.of_samples(part)
        if given is None:
            return capture(recipe, samples, keep=True)
        taken: list[int] = []
        while len(taken) < 2:  # what is taken at the first call only is no sample's
            with Growth(self.recipe.model.device) as growth:
                few = capture(recipe, samples, keep=True)
            taken.append(growth.bytes)
            if taken[-1] <= given + NOISE:
                return few
            del few
        raise too_small(given, least_for(max(taken)), "the Jacobian of two samples")

    @property
    def recipe(self) -> Recipe:
        """How a batch's Jacobian is made."""
        return self._recipe

    @property
    def paths(self) -> dict[str, str]:
        """Name -> how the rows of a parameter are found in the first batch; see `ParameterJacobian.paths`."""
        return self._paths

    @property
    def hashes(self) -> Tensor:
        """What the content of every sample hashes to: int64 ``[N]``."""
        return torch.cat(self.batches.hashes)

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that the records of a sample take, as the first few samples show."""
        return self._bytes

    @property
    def samples_at_once(self) -> int | None:
        """Into parts of how many samples `blocks` splits larger batches, to keep to the memory budget; None: not at all."""
        peak, most = max(PEAK * self._bytes, 1), max(self.sizes)
        given = given_budget(self.memory, self.in_space.device)
        if given is None or is_small(peak, most, given):
            budget = current_budget(self.memory, self.in_space.device)
            return None if peak * most <= budget else max(int(budget // (2 * peak)), 1)
        appetite = self._measured(given)
        return None if appetite.of(most) <= WHOLE * given else max(appetite.fits(PART * given), 1)

    def _measured(self, budget: int) -> Appetite:
        """What capturing some samples takes; measured once."""
        if self._appetite is None:
            tile, device = self.tiles(), self.in_space.device
            work = lambda count: tile(slice(0, count))  # noqa: E731
            self._appetite = measured(work, self.count, budget, device, "the Jacobian")
        return self._appetite

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The normalizer of the loss over all data; the first time it may cost a forward pass over the data."""
        if self.additive:
            return 1.0
        if bool(self._masses.isnan().any()):
            for part, found in self._pass(lambda samples, part: mass_of(self.recipe.of_samples(part), samples), "masses"):
                self._masses[part] = found / (part.stop - part.start)
        return float(self._masses.sum())

    def blocks(
        self, skip: Callable[[slice], bool] | None = None, *, at_once: int | None = None
    ) -> Iterator[tuple[slice, ParameterJacobian]]:
        """The Jacobian of every batch, in order, and which samples it is of.

        Args:
            skip: of which samples nothing is computed; they are read and checked.
            at_once: samples of a block, at most; batches of more are split. By default `samples_at_once`.

        Raises:
            DataError: the samples, their order, the model or the loss changed.
        """
        at_once = self.samples_at_once if at_once is None else at_once
        for start, samples, size in self._read():
            for part in slices(size, at_once or size):
                place = slice(start + part.start, start + part.stop)
                if skip is None or not skip(place):
                    yield place, self._captured(place, _cut(samples, part, size), memory=self.memory)

    def _captured(
        self, place: slice, samples: Samples, *, memory: Budget | None = None, keep: bool | None = None
    ) -> ParameterJacobian:
        with self._watch.running():
            return capture(self.recipe.of_samples(place), samples, memory=memory, keep=keep)

    def _read(self) -> Iterator[tuple[int, Samples, int]]:
        """Every batch: its first sample's number, its samples, and how many they are."""
        start = 0
        for samples, size in zip(self.batches.each(), self.sizes, strict=True):
            self._require_unchanged()
            yield start, samples, size
            start += size
        self._require_unchanged()

    def _require_unchanged(self) -> None:
        self._guard.check(*_GUARDED)
        self._watch.check(*_GUARDED)

    def _pass(
        self, work: Callable[[Samples, slice], Result], label: str, kept: int = 0
    ) -> Iterator[tuple[slice, Result]]:
        """What work on the samples of every batch gives, in parts that keep to the budget."""
        device, what = self.in_space.device, f"{label} of {self.count} samples"
        plan = ChunkPlan.within(self.memory, device, what, per_item=PEAK * self._bytes, kept=kept, doubt=DOUBT)
        experience = Experience()
        for start, samples, size in track(self._read(), label, len(self.sizes)):

            def piece(part: slice, start: int = start, samples: Samples = samples, size: int = size) -> Result:
                with self._watch.running():
                    return work(_cut(samples, part, size), slice(start + part.start, start + part.stop))

            for part, found in in_chunks(size, piece, plan, experience=experience):
                yield slice(start + part.start, start + part.stop), found

    def each(
        self, quantity: Callable[[ParameterJacobian, slice], Result], label: str, kept: int = 0
    ) -> Iterator[tuple[slice, Result]]:
        """A quantity of the Jacobian of every batch, or of parts of it; see `JacobianBySample.each`."""

        def work(samples: Samples, part: slice) -> tuple[float, Result]:
            J = capture(self.recipe.of_samples(part), samples)
            return J.mass, quantity(J, part)

        for part, (mass, found) in self._pass(work, label, kept):
            self._masses[part] = mass / (part.stop - part.start)
            yield part, found

    def _sum(self, quantity: Callable[[ParameterJacobian, slice], Tree], label: str) -> Tree:
        total = Total(self.in_space)
        for _, part in self.each(quantity, label):
            total.add(part)
        return total.result()

    def norms(self, per: Per = None) -> Any:
        """2-norms of the rows: ``[N]`` (``[N, C]``), or a dict of them; see `ParameterJacobian.norms`."""
        found = [part for _, part in self.each(lambda J, s: J.norms(per), "norms")]
        return torch.cat(found) if per is None else {key: torch.cat([part[key] for part in found]) for key in found[0]}

    def sum_of_squares(self) -> Tree:
        """The squares of all rows, summed over samples (and outputs): the diagonal of JᵀJ, a tree like the parameters."""
        return self._sum(lambda J, s: J.sum_of_squares(), "squares")

    def variance(self, *, correction: int = 1) -> Tree:
        """The variance of the rows, elementwise; see `ParameterJacobian.variance`."""
        spread = Spread(self.in_space)

        def parts(J: ParameterJacobian, s: slice) -> tuple[int, Tree, Tree]:
            rows = J.out_space.dim
            return rows, J.mean(), tree.map_tree(lambda leaf: leaf * rows, J.variance(correction=0))

        for _, found in self.each(parts, "variance"):
            spread.add(*found)
        return spread.variance(correction)

    def clipped_sum(
        self, max_norm: float | dict[str, float], *, per_layer: bool = False, weights: Tensor | None = None
    ) -> Tree:
        """The sum of the rows, each scaled down to a norm of at most `max_norm`; see `ParameterJacobian.clipped_sum`."""
        weights = self._ones() if weights is None else self._check_weights(weights)
        return self._sum(lambda J, s: J.clipped_sum(max_norm, per_layer=per_layer, weights=weights[s]), "clipped sum")

    def moments(self, approximation: Approximation = "expand") -> dict[str, Moments]:
        """Kronecker moments of every parameter's rows; see `ParameterJacobian.moments`."""
        parts: dict[str, Moments] = {}
        for _, found in self.each(lambda J, s: J.moments(approximation), "moments"):
            parts.update({name: add_moments([parts[name], part]) if name in parts else part for name, part in found.items()})
        return {name: parts[name] for name in self.in_space.names if name in parts}

    def select(self, samples: Any = None, *, params: Names = None) -> DataJacobian:
        """The columns of some parameters: names, or a predicate ``(name, tensor) -> bool``.

        Raises:
            UnsupportedError: a choice of samples. StructureError: a name that is not there, or nothing left.

        Cost: one pass over the data, which are read again.
        """
        if samples is not None:
            chosen_samples(samples, self.count)
            raise UnsupportedError(
                "select(samples) of a data set's Jacobian would read all of it for some.",
                "a choice of samples",
                "make the Jacobian of these samples: parameter_jacobian(model, loss, chosen)",
            )
        self._require_unchanged()
        names = chosen_names(params, dict(tree.named_leaves(self.params)))
        return DataJacobian(self.recipe.restricted(names), self.batches.data, self.memory)

    def dense(self, out: Any = None) -> Any:
        """The rows written out, ``[N, D]`` (``[N, C, D]``); see `ParameterJacobian.dense`."""
        shape, kept = (*self.out_space.shapes[0], self.in_space.dim), 0
        if out is None:
            self._require_room()
            out = pages.empty(shape, self.in_space.dtype, self.in_space.device)
            kept = out.nbytes
        target = target_of(out, shape, self.in_space.dtype, self.in_space.device, "dense")
        for _ in self.each(lambda J, s: J.dense(out=target[s]) is None, "rows", kept):
            pass
        return out

    def as_dict(self) -> dict[str, Tensor]:
        """The rows by parameter: name -> ``[N, *shape]`` (``[N, C, *shape]``)."""
        self._require_room()
        named = tree.named_leaves(self.params)
        rows, device = self.out_space.shapes[0], self.in_space.device
        tables = {name: pages.empty((*rows, *leaf.shape), leaf.dtype, device) for name, leaf in named}
        for part, found in self.each(lambda J, s: J.as_dict(), "rows", sum(table.nbytes for table in tables.values())):
            for name, table in tables.items():
                table[part] = found[name]
        return tables

    def mv(self, v: Tree) -> Tree:
        self.in_space.check(v, "vector")
        vector = handed_out(v)
        return torch.cat([part for _, part in self._products(lambda J, s: J @ vector())])

    def mm(self, V: Tree) -> Tree:
        self.in_space.check(V, "block of vectors", 1)
        block = handed_out(V)
        return torch.cat([part for _, part in self._products(lambda J, s: J.mm(block()))], 1)

    def weighted_sum(self, weights: Tensor) -> Tree:
        """``Jᵀ u`` for weights ``u`` of the shape of the rows: a tree like the parameters."""
        self._check_weights(weights)
        total = Total(self.in_space)
        for _, part in self._products(lambda J, s: J.T @ weights[s]):
            total.add(part)
        return total.result()

    def weighted_sums(self, weights: Tensor) -> Tree:
        """``Jᵀ u`` for every ``u`` along the first axis of `weights`, in one pass over the data."""
        total = Total(self.in_space)
        for _, part in self._products(lambda J, s: J.T.mm(weights[:, s])):
            total.add(part)
        return total.result()

    def _products(self, product: Callable[[Any, slice], Result]) -> Iterator[tuple[slice, Result]]:
        """Products with the Jacobian of every batch: of outputs by its linearization, without C backward passes."""
        if not self.recipe.is_linear:
            yield from self.each(product, "products")
        else:
            yield from self._pass(lambda samples, part: product(linear(self.recipe, samples), part), "products")

    def tiles(self) -> Callable[[slice], list[ParameterJacobian]]:
        """What captures the Jacobian of a range of samples, whose batches are joined where their tensors fit together."""
        reader = Reader(self.batches)

        def tile(part: slice) -> list[ParameterJacobian]:
            self._require_unchanged()
            found = reader.samples(part)
            joined = join(found)
            chosen, start = [], part.start
            for samples in found if joined is None else [joined]:
                place = slice(start, start + self.recipe.count(samples))
                chosen.append(self._captured(place, samples, keep=True))
                start = place.stop
            return chosen

        return tile

    def __repr__(self) -> str:
        rows = " x ".join(str(size) for size in self.out_space.shapes[0])
        of = "output" if self.recipe.loss is None else "loss"
        batches = f"{len(self.sizes)} batch{'es' if len(self.sizes) > 1 else ''}"
        parameters = f"{self.in_space.dim} of the {of} by {len(self.in_space.names)} parameters"
        return f"DataJacobian({rows} x {parameters}, over {batches})"


def _cut(samples: Samples, part: slice, size: int) -> Samples:
    return samples if part == slice(0, size) else cut(samples, part)
