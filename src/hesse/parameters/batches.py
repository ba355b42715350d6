"""The batches of a data set, read again and again: the same samples, in the same order, every time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.model import sample_count
from hesse.core import tree
from hesse.core.errors import DataError, DeviceError, LeafError, NonFiniteError, StructureError
from hesse.core.fingerprint import sample_hashes
from hesse.operators.data_set import refuse_one_shot
from hesse.parameters.recipe import Recipe


class Batches:
    """The batches of a data set, and what their samples hash to.

    Args:
        data: a list, a DataLoader, anything that can be read again and again.
        recipe: how a batch is read.

    Raises:
        OneShotDataError: a generator. DataError: no batch, or a batch that cannot be used.

    Cost: one pass over the data, which are hashed.
    """

    def __init__(self, data: Iterable[Any], recipe: Recipe) -> None:
        refuse_one_shot(data, recipe.asked.text)
        if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
            raise DataError(recipe.asked.text, f"{type(data).__name__} as data", "pass a batch, or an iterable of batches")
        self.data, self.recipe = data, recipe
        self.sizes: list[int] = []
        self.hashes: list[Tensor] = []
        self._example: Any = None
        for number, batch in enumerate(data):
            with _numbered(number):
                if not number:
                    self._example = recipe.read(batch)
                self.sizes.append(recipe.count(batch))
                self.hashes.append(sample_hashes(*recipe.read(batch)).cpu())
        if not self.sizes:
            remedy = "pass at least one batch; a process without data passes None to hesse.distributed.write_rows"
            raise DataError(recipe.asked.text, "a data set without a batch", remedy)

    def take_example(self) -> tuple[Any, Any]:
        """``(inputs, targets)`` of the first batch as it was first read; it is not held any longer."""
        example, self._example = self._example, None
        return example

    def each(self) -> Iterator[tuple[Any, Any]]:
        """``(inputs, targets)`` of every batch, in order.

        Raises:
            DataError: other samples, or another order, than in the first pass; more or fewer batches.
        """
        reader = Reader(self)
        for number in range(len(self.sizes)):
            yield reader.batch(number)
        reader.require_end()

    def check(self, number: int, batch: Any, part: slice | None = None) -> tuple[Any, Any]:
        """``(inputs, targets)`` of the batch, or of a part of it, after comparing it with what was read first under its number.

        Args:
            number: of the batch.
            batch: what the data give now.
            part: which of its samples; only these are compared, and that there are as many as before. They are copied before
                they are compared, so that nobody changes them while other parts are read.
        """
        with _numbered(number):
            samples = self.recipe.read(batch)
            known = number < len(self.sizes)
            if known and part is not None and sample_count(*samples, self.recipe.asked.text) == self.sizes[number]:
                some = _copied(cut(samples, part))
                if torch.equal(sample_hashes(*some).cpu(), self.hashes[number][part]):
                    return some
        if not known or not torch.equal(sample_hashes(*samples).cpu(), self.hashes[number]):
            raise DataError(
                self.recipe.asked.text,
                f"other samples in batch {number} than in the first pass over the data (or another order)",
                "turn shuffling and augmentation off, so that every pass gives the same batches; nothing may change in place",
            )
        return samples if part is None else _copied(cut(samples, part))


@contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Errors in it say which batch they are of."""
    try:
        yield
    except (DataError, DeviceError, LeafError, NonFiniteError, StructureError) as error:
        raise type(error)(error.asked, f"batch {number}: {error.found}", error.remedy) from error


class Reader:
    """Reads batches by number: directly from a list or tuple, else by passes, of which one is as long as numbers increase.

    What passes give is held as long as parts of one batch are asked for one after the other.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._direct = isinstance(batches.data, (list, tuple))
        self._rest: Iterator[Any] = iter(())
        self._next: int | None = None
        self._last: tuple[int, Any] | None = None

    def batch(self, number: int, part: slice | None = None) -> tuple[Any, Any]:
        """``(inputs, targets)`` of the batch with this number, or of a part of it.

        Raises:
            DataError: it is not what it was in the first pass.
        """
        size = self._batches.sizes[number] if number < len(self._batches.sizes) else 0
        part = None if part == slice(0, size) else part
        batch = self._read(number)
        inside = not self._direct and part is not None and part.stop < size
        self._last = (number, batch) if inside else None
        return self._batches.check(number, batch, part)

    def _read(self, number: int) -> Any:
        data: Any = self._batches.data
        if self._direct:
            self._next = number + 1
            if number >= len(data):
                raise self._short(len(data))
            return data[number]
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        self._last = None
        if self._next is None or number < self._next:
            self._rest, self._next = iter(data), 0
        batch: Any = None
        for passed in range(self._next, number + 1):
            try:
                batch = next(self._rest)
            except StopIteration:
                raise self._short(passed) from None
        self._next = number + 1
        return batch

    def samples(self, part: slice) -> list[tuple[Any, Any]]:
        """The samples of a range, of which each batch has a part.

        Raises:
            DataError: they are not what they were; after the last one the data go on.
        """
        found, start = [], 0
        for number, size in enumerate(self._batches.sizes):
            first, last = max(part.start - start, 0), min(part.stop - start, size)
            if first < last:
                found.append(self.batch(number, slice(first, last)))
            start += size
        if part.stop == start:
            self.require_end()
        return found

    def require_end(self) -> None:
        """Refuse data that go on after the last batch, which has just been read.

        Raises:
            DataError: there is one more batch than in the first pass.
        """
        data: Any = self._batches.data
        more = data[self._next :] if self._direct else itertools.islice(self._rest, 1)
        for batch in more:
            self._batches.check(len(self._batches.sizes), batch)
        self._rest = iter(())

    def _short(self, found: int) -> DataError:
        return DataError(
            self._batches.recipe.asked.text,
            f"{found} batches, where the first pass over the data had {len(self._batches.sizes)}",
            "give the same batches in every pass",
        )


def join(parts: list[tuple[Any, Any]]) -> tuple[Any, Any] | None:
    """Batches ``(inputs, targets)`` as one, one after the other; None where they do not fit together.

    Tensors have to agree in all axes but the first, and everything else has to be equal.
    """
    if len(parts) == 1:
        return parts[0]
    flat = [tree.flatten(part) for part in parts]
    named = [tree.named_leaves(part) for part in parts]
    if any(structure != flat[0][1] for _, structure in flat) or any(
        [name for name, _ in names] != [name for name, _ in named[0]] for names in named
    ):
        return None
    columns = list(zip(*(leaves for leaves, _ in flat), strict=True))
    if not all(_alike(column) for column in columns):
        return None
    return flat[0][1].unflatten([torch.cat(column) if isinstance(column[0], Tensor) else column[0] for column in columns])


def _alike(column: tuple[Any, ...]) -> bool:
    first = column[0]
    if not isinstance(first, Tensor):
        return all(type(other) is type(first) and other == first for other in column)
    kind = (first.shape[1:], first.dtype, first.device, first.layout)
    return all(isinstance(o, Tensor) and (o.shape[1:], o.dtype, o.device, o.layout) == kind for o in column)


def cut(batch: tuple[Any, Any], part: slice) -> tuple[Any, Any]:
    """Some consecutive samples of a batch ``(inputs, targets)``."""
    return tree.map_tree(lambda leaf: leaf[part] if isinstance(leaf, Tensor) else leaf, batch)


def _copied(batch: tuple[Any, Any]) -> tuple[Any, Any]:
    return tree.map_tree(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)
