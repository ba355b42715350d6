"""Passes over a data set that make one operator a batch: checked for changed content, kept while memory allows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.errors import DataError, OneShotDataError
from hesse.core.fingerprint import fingerprint, sample_hashes
from hesse.core.guard import Guard
from hesse.core.memory import Budget, format_bytes, parse_budget
from hesse.core.watch import Values, Watch
from hesse.operators.base import LinearOperator, parts_of
from hesse.operators.division import Division

Result = TypeVar("Result")

_PLAIN = (bool, int, float, complex, str, bytes, type(None))  # whose text is all there is to them
_ASKED = "Every product with an operator over data has to see the same data."
_GUARDED = (
    "Every product with an operator over data has to see the same parameters.",
    "make a new operator after every update",
)
_WATCHED = (
    "Every product with an operator over data has to see the same model and the same loss.",
    "make a new operator after every change of parameters, buffers, modes, modules, weights of the loss, or what the function "
    "that makes the operators reads",
)
_MOST_WATCHES = 100  # over models and losses of which each batch has its own


def refuse_one_shot(data: Any, asked: str) -> None:
    """Raise `OneShotDataError` if `data` can be read only once."""
    if isinstance(data, Iterator):
        raise OneShotDataError(
            asked, f"a one-shot {type(data).__name__}", "pass list(data), or a DataLoader, which can be read again"
        )


@dataclass(frozen=True)
class _Stamp:
    """What tells whether a batch was changed in place.

    Attributes:
        tensors: each with its count of changes.
        values: numbers, texts and the like, printed.
        is_known: whether that is all: neither arrays, nor objects, nor tensors that count no changes.
        nesting: how the batch is nested, keys included.
    """

    tensors: list[tuple[Tensor, int]]
    values: list[str]
    is_known: bool
    nesting: Any

    def is_same(self, other: _Stamp) -> bool:
        if (self.nesting, self.values, len(self.tensors)) != (other.nesting, other.values, len(other.tensors)):
            return False
        return all(a is b and old == new for (a, old), (b, new) in zip(self.tensors, other.tensors, strict=True))


@dataclass(frozen=True)
class _Made:
    """A batch's operator, with the hashes of the batch's samples and what tells that the batch in hand is still that one."""

    operator: LinearOperator
    hashes: Tensor | None
    batch: Any
    stamp: _Stamp

    @property
    def held_bytes(self) -> int | None:
        return getattr(self.operator, "held_bytes", None)

    def is_of(self, batch: Any) -> bool:
        """Whether it is known to be made from this very batch, in which nothing was changed since."""
        return batch is self.batch and self.stamp.is_known and self.stamp.is_same(_stamp(batch))


class DataSet:
    """The operators of the batches of a data set, pass by pass.

    Args:
        make: turns a batch into an operator. Of the operator it asks optional attributes: `held_bytes`, the bytes it
            holds on to (without it, it is not kept); `peak_bytes`, what making it and a product take at the highest, if that
            is known; `reads`, the tensors it was made from other than the batch; `watch`, a `Watch` of what else it reads,
            or `watched`, the objects for one (these three also of the operators it is made of). `make` itself may have `watch`,
            for its first run.
        batches: an iterable of batches that can be read again and again.
        data_check: refuse passes whose samples are others than those of the first complete pass, in whatever order and batches.
        keep: use the operators of the first complete pass again, as many as fit into half of the memory budget: of a list or
            tuple the first ones; of anything else, whose order may change, all or none. Nothing is kept without `data_check`.
        memory: the budget; by default the one in force.
    """

    def __init__(
        self,
        make: Callable[[Any], LinearOperator],
        batches: Iterable[Any],
        *,
        data_check: bool = True,
        keep: bool = True,
        memory: Budget | None = None,
    ) -> None:
        if memory is not None:
            parse_budget(memory)
        self.make, self.batches, self.data_check, self.memory = make, batches, data_check, memory
        self._keeps, self._in_order = keep and data_check, isinstance(batches, (list, tuple))
        self.division = Division(memory)
        self._kept: list[_Made] = []
        self._count: int | None = None  # of the batches of the first complete pass
        self._fingerprint: int | None = None
        self._guard = Guard(())
        self._values = Values(make=make)
        self._watches: list[Watch] = [make.watch] if hasattr(make, "watch") else []  # pyright: ignore[reportFunctionMemberAccess]

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process knows nothing of the passes here."""
        made = functools.partial(DataSet, data_check=self.data_check, keep=self._keeps, memory=self.memory)
        return made, (self.make, self.batches)

    def __len__(self) -> int:
        """Number of batches; raises TypeError where only a pass can tell."""
        return len(self.batches)  # pyright: ignore[reportArgumentType]

    def of(self, batches: Iterable[Any]) -> DataSet:
        """The same of other batches: nothing is kept yet, and nothing known of their content."""
        return DataSet(self.make, batches, data_check=self.data_check, keep=self._keeps, memory=self.memory)

    def first(self) -> LinearOperator:
        """The operator of the first batch; what it took is not lost where the first pass begins with the same batch.

        Raises:
            DataError: no batch.
        """
        for batch in self.batches:
            division = self.division
            division.device = next((leaf.device for leaf, _ in _stamp(batch).tensors), division.device)
            division.base = division.ground()
            made = self._make(batch, None)
            if self._keeps and self._fits(0, made):
                self._kept = [made]
            return made.operator
        raise DataError("An operator over a data set needs data.", "no batch", "pass at least one batch")

    def operators(self) -> Iterator[LinearOperator]:
        """One pass: the operator of each batch.

        What was made of the operators may be used only once the pass has ended without an error.

        Raises:
            DataError: no batch; other content than in the first complete pass; something that the operators read was changed.
        """
        self._require_unchanged()
        if self._count is not None and self._kept and not self._in_order:
            for made in self._kept:
                yield made.operator
        else:
            yield from self._read()
        self._require_unchanged()

    def _read(self) -> Iterator[LinearOperator]:
        hashes: list[Tensor] = []
        kept: list[_Made] = []
        count = held = 0
        keeps, ground = self._keeps and self._count is None, self.division.ground()
        all_kept, self.division.now = True, self.division.held
        for batch in self.batches:
            known = self._kept[count] if count < len(self._kept) else None
            made = known if known is not None and self._in_order and known.is_of(batch) else self._make(batch, known)
            all_kept = all_kept and made is known
            yield made.operator
            count += 1
            if made.hashes is not None:
                hashes.append(made.hashes)
            keeps = keeps and self._fits(held, made) and not self.division.is_over(ground)
            if keeps:
                kept.append(made)
                held += (made.held_bytes or 0) + self._own_bytes(made)
                self.division.now = held
            elif not self._in_order:
                kept.clear()
                self.division.now = self.division.held
            del made, known, batch  # so that the next batch is not made beside this one
        if not count:
            raise DataError("An operator over a data set needs data.", "no batch in this pass", "pass a list of batches")
        if self.data_check and not (all_kept and count == self._count):
            self._compare(fingerprint(*hashes))
        if self._count is None:
            self._kept, self._count = kept, count
            self.division.base, self.division.held = None, held if kept else 0

    def ask(self, quantity: Callable[[LinearOperator], Result], operator: LinearOperator, ground: int | None) -> Result:
        """A quantity of an operator of a pass, within what is left of the memory budget.

        Args:
            quantity: of the operator.
            operator: of a batch.
            ground: what `division.ground` was before the pass.
        """
        is_kept = any(made.operator is operator for made in self._kept)
        known = 0 if is_kept and self._count is not None else getattr(operator, "held_bytes", None) or 0
        with self._running("product"):
            return self.division.ask(lambda: quantity(operator), ground, known)

    def _make(self, batch: Any, known: _Made | None) -> _Made:
        """The operator of a batch: `known` if that was made from samples of the same content, else a new one."""
        stamp = _stamp(batch)
        hashes = sample_hashes(batch) if self.data_check else None
        if known is not None and hashes is not None and known.hashes is not None and _equal(hashes, known.hashes):
            return _Made(known.operator, hashes, batch, stamp)
        with self._running("operator"):
            operator: Any = self.make(batch)
        self.division.peak = max(self.division.peak, getattr(operator, "peak_bytes", 0))
        parts = list(_constituents(operator))
        if self._count is None:
            self._guard.add(leaf for part in parts for leaf in getattr(part, "reads", ()))
        for part in parts:
            self._see(part)
        return _Made(operator, hashes, batch, stamp)

    def _see(self, part: Any) -> None:
        """Watch from now on what an operator of the first pass reads, if that is not watched yet."""
        read, is_new = getattr(part, "watched", None), self._count is None and len(self._watches) < _MOST_WATCHES
        if read is not None:
            part.watch = next((watch for watch in self._watches if watch.is_over(read)), None)
            if part.watch is None and is_new:
                part.watch = Watch(**read)
        found = getattr(part, "watch", None)
        if found is not None:
            found.beside = self._values  # also where the normalizer is asked for between runs
        if is_new and found is not None and not any(found is watch for watch in self._watches):
            self._watches.append(found)

    def _running(self, kind: str) -> ExitStack:
        """Around a run of model and loss, which may register buffers and write to tensors of their own."""
        stack = ExitStack()
        stack.enter_context(self._values.running())
        for watch in self._watches:
            stack.enter_context(watch.running(kind))
        return stack

    def _fits(self, held: int, made: _Made) -> bool:
        if made.held_bytes is None:
            return False
        return self.division.may_keep(held + made.held_bytes + self._own_bytes(made))

    def forget(self) -> bool:
        """Keep no operator any more; whether one was kept."""
        had = bool(self._kept) or (self._keeps and self._count is None)
        self._keeps, self._kept = False, []
        self.division.held = self.division.now = 0
        return had

    def _own_bytes(self, made: _Made) -> int:
        """Bytes of the batch, if nobody but the operator keeps it."""
        return 0 if self._in_order else sum(leaf.nbytes for leaf, _ in made.stamp.tensors)

    def _compare(self, found: int) -> None:
        if self._fingerprint is None:
            self._fingerprint = found
        if found == self._fingerprint:
            return
        samples, before = found >> 64, self._fingerprint >> 64
        what = f"{samples} samples where the first pass had {before}" if samples != before else f"{samples} samples"
        raise DataError(
            _ASKED,
            f"{what}, some with other content than in the first pass (the order may change)",
            "read the same samples in every pass (no random augmentation, no drop_last or sampling with replacement, nothing "
            "changed in place); make a new operator for new data; pass data_check=False for losses that are random on purpose",
        )

    def _require_unchanged(self) -> None:
        self._guard.check(*_GUARDED)
        if change := self._values.change():
            raise DataError(_WATCHED[0], change, _WATCHED[1])
        for watch in self._watches:
            watch.check(*_WATCHED)

    def __repr__(self) -> str:
        """What became of the operators of the first pass; empty before it."""
        if self._count is None:
            return ""
        held = format_bytes(sum((made.held_bytes or 0) + self._own_bytes(made) for made in self._kept))
        return f"{len(self._kept)} of {self._count} batches kept ({held})" if self._kept else "recomputed"


def _stamp(batch: Any) -> _Stamp:
    leaves, structure = tree.flatten(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    others = [*(leaf for leaf in leaves if not isinstance(leaf, Tensor)), *(leaf for _, leaf in structure.static)]
    is_known = all(type(leaf) in _PLAIN for leaf in others) and not any(leaf.is_inference() for leaf in tensors)
    values = [repr(leaf) for leaf in others if type(leaf) in _PLAIN]
    return _Stamp([(leaf, _version(leaf)) for leaf in tensors], values, is_known, structure.spec)


def _constituents(operator: Any) -> Iterator[Any]:
    """An operator and all that it is made of, as far as these do not read anything themselves."""
    yield operator
    if isinstance(operator, LinearOperator) and not _reads(operator):
        for part in parts_of(operator):
            yield from _constituents(part)


def _reads(operator: Any) -> bool:
    return any(hasattr(operator, name) for name in ("reads", "watch", "watched"))


def _version(leaf: Tensor) -> int:
    return 0 if leaf.is_inference() else leaf._version  # inference tensors do not count their changes


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.device == second.device and torch.equal(first, second)
