"""Products with every unit vector, gathered into one result that is held once, within the memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from hesse.autodiff.blocks import chunk_for, joined
from hesse.autodiff.recording import Recording
from hesse.autodiff.room import Room
from hesse.core.batching import slices
from hesse.core.chunked import ChunkPlan, in_chunks
from hesse.core.errors import MemoryBudgetError
from hesse.core.memory import chunk_size, too_small

Products = Callable[[int, slice], list[Tensor]]  # a leaf's number and some of its unit vectors, to one tensor [k, ...] a leaf
Empty = Callable[[int, int], list[Tensor]]  # a leaf's number and how many unit vectors it has, to what they are written into

_COPIES = 4  # of what the graph produced, for each vector of a batched pass
_SURE = 0.25  # of the room: passes that are estimated below it are not measured
_LITTLE = 0.05  # of the budget
_PLENTY = 2**62  # bytes
_NOISE = 2**20  # bytes that no measurement tells
_MARGIN = 1.1  # over what was measured, where an error names it
_GRAPHS = 3  # times what the graph produced, for each vector whose product is to be differentiable: twice was measured
_FIRST = 2**25  # bytes that PyTorch takes for its first batched passes of a process, over what was seen
_FOLLOWED = " that is to be differentiable itself"
_INDEX = 24  # bytes of a sparse entry's index along an axis, while it is made


@dataclass(frozen=True, eq=False)
class Gathering:
    """Products of a recorded derivative with all unit vectors.

    Attributes:
        recording: what is differentiated.
        room: the memory that the call may take.
        what: how an error names the result.
        kept: bytes of the result, and of whatever is made of it.
        later: bytes that may be needed besides in the end, for errors only.
    """

    recording: Recording
    room: Room
    what: str
    kept: int
    later: int = 0

    def chunk(self, total: int) -> int:
        """How many unit vectors share a pass: as many as fit beside the result, and no more than stay near the cache.

        Raises:
            MemoryBudgetError: not even one fits.
        """
        if self.recording.functorch or not total:
            return max(total, 1)
        try:
            return min(total, self._at_once)
        except MemoryBudgetError as error:
            if not self.recording.follows([]):
                raise
            raise self.room.refusal(error.least + self._graphs(total), f"{self.what}{_FOLLOWED}") from None

    def _graphs(self, total: int) -> int:
        """Bytes of the graphs of results that are to be differentiable, and of a copy of these, at most by what is known."""
        return self.kept + _FIRST + total * _GRAPHS * self.recording.graph_bytes()

    @cached_property
    def _at_once(self) -> int:
        graph = 0 if self.room.given is None else self.recording.graph_bytes()
        held = self.room.held(graph)
        try:
            found = chunk_for(self.recording, _PLENTY, self.kept + held, self.room.given, self.what)
            return found if not graph else min(max(found, self._spare() // self._each()), self._most(_PLENTY))
        except MemoryBudgetError as error:
            raise self._too_small(error.least - held) if held < graph or self.later else error from None

    def _too_small(self, least: int) -> MemoryBudgetError:
        """With room for the whole graph besides, of which less may have been fresh memory this time."""
        assert self.room.given is not None
        least += self.recording.graph_bytes() + self.later
        return too_small(self.room.given, max(least, self.room.given + 1), self.what)

    def stacks(self, counts: Sequence[int], products: Products, empty: Empty, label: str) -> list[list[Tensor]]:
        """The products of each leaf's unit vectors, one after the other: for each leaf one tensor ``[count, ...]`` a product.

        Args:
            counts: unit vectors of each leaf.
            products: those of some of them.
            empty: memory for all of them, which they are written into. Where they are to be differentiable themselves, they are
                joined instead, and held twice.
            label: shown as progress.

        Raises:
            MemoryBudgetError: the result, the work on one unit vector, or the graphs of results that are to be differentiable.

        Cost: the products, and a copy of them; measured where they may take more than a quarter of the budget.
        """
        total = sum(counts)
        chunk = self.chunk(total)
        if self.recording.functorch or self.recording.follows([]):
            return self._joined(counts, products, empty, chunk, label)
        found = [empty(index, count) for index, count in enumerate(counts)]

        def write(index: int, part: slice) -> None:
            for whole, block in zip(found[index], products(index, part), strict=True):
                whole[part].copy_(block)

        room = self._measured(min(chunk, total))
        if room is None:
            for index, count in enumerate(counts):
                for part in slices(count, chunk, label):
                    write(index, part)
            return found

        most = self._most(total)

        def work(flat: slice) -> None:
            for index, part in _parts(counts, flat, most):
                write(index, part)

        plan = ChunkPlan(room + self.kept, self.recording.in_space.device, self.what, self._each(), self.kept)
        try:
            for _ in in_chunks(total, work, plan, label):
                pass
        except MemoryBudgetError as error:
            raise self._too_small(error.least) from error
        return found

    def _most(self, total: int) -> int:
        """How many unit vectors share a pass where there is no lack of memory."""
        return chunk_for(self.recording, total, 0, _PLENTY, self.what)

    def _each(self) -> int:
        return _COPIES * max(self.recording.graph_bytes(), 1)

    def _spare(self) -> int:
        """Bytes that a pass may always take, since they are few beside the budget."""
        return int(_LITTLE * (self.room.given or 0))

    def _measured(self, count: int) -> int | None:
        """Bytes beside the result, where so many vectors may take a good part of them; None: there is nothing to measure."""
        given = self.room.given
        if given is None:
            return None
        room = given - self.kept - self.room.held(self.recording.graph_bytes())
        return room if room > _NOISE and self._each() * count > _SURE * room else None

    def _joined(
        self, counts: Sequence[int], products: Products, empty: Empty, chunk: int, label: str
    ) -> list[list[Tensor]]:
        """As `stacks`, of products that hold on to their graphs."""
        pieces: list[list[list[Tensor]]] = [[] for _ in counts]
        done, total, first = 0, sum(counts), None
        for index, count in enumerate(counts):
            for part in slices(count, chunk, label):
                pieces[index].append(products(index, part))
                done += part.stop - part.start
                first = self._require_graphs(done, total, first)
        return [joined(parts, []) if parts else empty(index, 0) for index, parts in enumerate(pieces)]

    def _require_graphs(self, done: int, total: int, first: tuple[int, int] | None) -> tuple[int, int] | None:
        """Refuse results that are to be differentiable, whose graphs will not fit.

        Args:
            done: how many of `total` vectors.
            first: how many were done when this was first called, and what was taken then: also what is taken once and for all.

        Returns:
            `first`, if it is not known yet: of this call.
        """
        given = self.room.given
        if given is None or self.recording.functorch:
            return None
        taken = self.room.taken()
        if taken > given + _NOISE or (done == total and taken + self.kept > given + _NOISE):
            more = (total - done) * _GRAPHS * self.recording.graph_bytes()
            if first is not None:
                more = (total - done) * (taken - first[1]) / (done - first[0])
            raise self.room.refusal(int(_MARGIN * (taken + more + self.kept)), f"{self.what}{_FOLLOWED}")
        return first or (done, taken)


def _parts(counts: Sequence[int], flat: slice, chunk: int) -> Iterator[tuple[int, slice]]:
    """The parts of leaves that some of all unit vectors are, each no longer than a chunk."""
    start = 0
    for index, count in enumerate(counts):
        low, high = max(flat.start - start, 0), min(flat.stop - start, count)
        for first in range(low, high, chunk):
            yield index, slice(first, min(first + chunk, high))
        start += count


def sparse_bytes(recording: Recording) -> int:
    """Bytes that `sparsified` takes at most for all entries of a derivative."""
    axes = max(y.ndim for y in recording.outputs) + max(x.ndim for x in recording.inputs)
    entry = _INDEX * axes + 2 * recording.in_space.dtype.itemsize
    return recording.out_space.dim * recording.in_space.dim * entry


def sparsified(table: list[list[Tensor]], room: Room) -> list[list[Tensor]]:
    """Dense tensors as sparse ones (COO), one after the other.

    Args:
        table: is emptied on the way.
        room: the memory that the call may take.

    Raises:
        MemoryBudgetError: they do not fit beside the dense ones.
    """
    if room.given is not None:
        size = sum(block.nbytes for row in table for block in row)
        entries = [int(block.count_nonzero()) * (_INDEX * block.ndim + 2 * block.itemsize) for row in table for block in row]
        chunk_size(1, 0, size + sum(entries), room.given, "sparse tensors made of dense ones")
    return [[row.pop(0).to_sparse() for _ in range(len(row))] for row in table]
