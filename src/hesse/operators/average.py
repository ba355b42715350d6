"""The average of one operator a batch over a data set, each weighted by its own normalizing mass."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

from hesse.core.errors import DataError, MemoryBudgetError, StructureError
from hesse.core.memory import Budget
from hesse.core.progress import track
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag
from hesse.operators.copies import shared, unpicklable
from hesse.operators.data_set import DataSet, refuse_one_shot
from hesse.operators.spread import Spread, asked_together
from hesse.operators.weighted_sum import WeightedSum, handed_out

Result = TypeVar("Result")


class Average(LinearOperator):
    """``sum_b mass_b A_b / sum_b mass_b`` over the batches of a data set (``sum_b A_b`` if `additive`).

    For losses with ``reduction="mean"`` this *is* the full-batch operator, however uneven the batches and whatever the
    class weights or ignored targets, since each batch weighs as much as its loss's own normalizer.

    Args:
        make: turns a batch into an operator (see `DataSet` for what it may say of itself).
        batches: an iterable of batches that can be read again and again.
        additive: add instead of average (losses with ``reduction="sum"``); None: as the first operator's attribute `additive`
            says, where it has one.
        data_check, keep, memory: as for `average`.

    Cost: one pass over the data a product, or over the kept operators; a block of vectors (`mm`) shares one pass.
    """

    def __init__(
        self,
        make: Callable[[Any], LinearOperator],
        batches: Iterable[Any],
        *,
        additive: bool | None = None,
        data_check: bool = True,
        keep: bool = True,
        memory: Budget | None = None,
    ) -> None:
        refuse_one_shot(batches, "An operator over a data set reads the data once for every product.")
        self.data, self._flipped = DataSet(make, batches, data_check=data_check, keep=keep, memory=memory), False
        first = self.data.first()
        self.in_space, self.out_space, self.tags = first.in_space, first.out_space, first.tags
        self.additive = bool(getattr(first, "additive", False)) if additive is None else additive
        self._mass: float | None = 1.0 if self.additive else None

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The normalizer of the whole data set; costs a pass over the data the first time it is asked for."""
        if self._mass is None:
            self._mass = sum(operator.mass for operator in self.data.operators())
        return self._mass

    def operators(self) -> Iterator[LinearOperator]:
        """The operator of each batch, made as it is reached or kept from the first pass."""
        return self.data.operators()

    def _require_alike(self, operator: LinearOperator) -> None:
        if (operator.in_space, operator.out_space) != (self.in_space, self.out_space):
            raise StructureError(
                "The batches of an average need operators between the same spaces.",
                f"{operator.in_space} to {operator.out_space}, where the first batch had {self.in_space} to {self.out_space}",
                "make operators whose spaces do not depend on the batch",
            )
        if not self.tags <= operator.tags:
            missing = ", ".join(sorted(tag.value for tag in self.tags - operator.tags))
            raise StructureError(
                "The batches of an average need operators with the tags of the first.",
                f"a batch that is not {missing}",
                "make operators whose tags do not depend on the batch",
            )

    def weighted(self) -> Iterator[tuple[LinearOperator, float]]:
        """One pass over the data: each batch's operator and its weight, without the batches of weight zero.

        For quantities that are not a tree linear in the operator (`combine`). Divide by the sum of the weights, unless
        `additive`. Use nothing of it before the pass has ended: only then it is known that the data are those of other passes.

        Raises:
            DataError: nothing counts, other data than in other passes, or changed parameters.
            StructureError: a batch's operator has other spaces or fewer tags than the first.
        """
        count = len(self.data) if hasattr(self.data.batches, "__len__") else None
        mass = 0.0
        for operator in track(self.data.operators(), "batches", count):
            weight = 1.0 if self.additive else operator.mass
            if weight == 0:  # nothing in this batch counts (all targets ignored): 0/0 stays out
                continue
            operator = operator.T if self._flipped else operator  # after its mass was read: .T need not keep it
            self._require_alike(operator)
            mass += weight
            yield operator, weight
            del operator  # so that the next batch is not made beside this one
        if mass == 0:
            raise DataError("An average over data needs something that counts.", "a total mass of 0", "check the targets")
        self._mass = 1.0 if self.additive else mass

    def combine(self, quantity: Callable[[LinearOperator], Tree]) -> Tree:
        """A quantity that is linear in the operator (a product, a diagonal), averaged over the batches as the operator is.

        Raises:
            DataError: nothing counts, other data than in other passes, or changed parameters.
            MemoryBudgetError: the quantity of one batch does not fit the budget, also where no operator is kept.

        Cost: one pass over the data.
        """
        try:
            return self._combined(quantity)
        except MemoryBudgetError:
            if not self.data.forget():
                raise
        return self._combined(quantity)

    def _combined(self, quantity: Callable[[LinearOperator], Tree]) -> Tree:
        total = WeightedSum()
        for part, weight in self.parts(quantity):
            total.add(part, weight)
            del part
        return total.over(1.0 if self.additive else self.mass)

    def parts(self, quantity: Callable[[LinearOperator], Result]) -> Iterator[tuple[Result, float]]:
        """A quantity of each operator of a pass, within the memory budget, and the operator's weight; see `weighted`."""
        ground = self.data.division.ground()
        for operator, weight in self.weighted():
            yield self.data.ask(quantity, operator, ground), weight
            del operator

    def mv(self, v: Tree) -> Tree:
        vector = handed_out(v)
        return self.combine(lambda operator: operator.mv(vector()))

    def mm(self, V: Tree) -> Tree:
        block = handed_out(V)
        return self.combine(lambda operator: operator.mm(block()))

    @property
    def gradient(self) -> Tree:
        """The gradient of the loss over all data, where the operators of the batches have one (`loss_hessian`).

        Cost: one pass over the data.
        """
        return self.combine(lambda operator: operator.gradient)  # pyright: ignore[reportAttributeAccessIssue]

    def transpose(self) -> LinearOperator:
        transposed = copy.copy(self)
        transposed._flipped = not self._flipped
        transposed.in_space, transposed.out_space = self.out_space, self.in_space
        return transposed

    def __copy__(self) -> Self:
        return shared(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy that reads the same model and data, and is refused as this one is where they change."""
        return shared(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        try:
            pickle.dumps(self.data.make)
        except (pickle.PicklingError, AttributeError, TypeError, NotImplementedError) as error:
            raise unpicklable(type(self).__name__) from error
        return object.__reduce_ex__(self, protocol)

    def __repr__(self) -> str:
        name = "Sum" if self.additive else "Average"
        tags = ", ".join(sorted(tag.value for tag in self.tags if isinstance(tag, Tag)))
        kept = repr(self.data)
        shape = f"{self.shape[0]} x {self.shape[1]}"
        return f"{name}({shape} over batches{', ' if tags else ''}{tags}{'; ' if kept else ''}{kept})"


@asked_together
def average(
    make: Callable[[Any], LinearOperator],
    batches: Iterable[Any],
    *,
    additive: bool | None = None,
    data_check: bool = True,
    keep: bool = True,
    memory: Budget | None = None,
) -> LinearOperator:
    """The average of one operator a batch over a data set, weighted by `mass`: ``sum_b mass_b A_b / sum_b mass_b``.

    Args:
        make: turns a batch into an operator, ``lambda batch: hesse.ggn(model, loss, batch)``.
        batches: an iterable of batches that can be read again and again (a list, a DataLoader), or
            `hesse.distributed.spread` of such, whose batches lie on several processes.
        additive: add instead of average; by default as the operators say (losses with ``reduction="sum"`` add up).
        data_check: refuse to go on where a pass over the data reads other samples than the first complete one; order and
            batches may change. Of a list whose operators are kept, changes are seen where PyTorch counts them, not those
            written through NumPy (``x.numpy()[:] = ...``). Pass False for losses that are random on purpose.
        keep: use the operators of the first pass (their graphs) again instead of reading the data, as many as fit into half of
            the memory budget: of a list or tuple the first ones; of anything else all or none. The printed operator says how
            many. Without `data_check` nothing is kept.
        memory: bytes, fraction or text such as ``"2GiB"``; by default the budget in force.

    Returns:
        The operator of the whole data set: for losses with ``reduction="mean"`` it equals the full-batch operator, however
        uneven the batches and whatever the class weights or ignored targets.

    Raises:
        OneShotDataError: a generator. DataError: no batch; later, in a product, other data than in the first complete pass, or
        parameters that were changed in place.

    Cost: one pass over the data a product, or over the kept operators; a block of vectors shares one pass. The check adds
    about one pass over the bytes of the batches that are read.
    """
    if isinstance(batches, Spread):
        return batches.average(make, additive=additive, data_check=data_check, keep=keep, memory=memory)
    return Average(make, batches, additive=additive, data_check=data_check, keep=keep, memory=memory)
