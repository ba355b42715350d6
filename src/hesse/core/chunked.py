"""Work in chunks that keep to a memory budget: calibrated on the first chunk, adapted after each, halved where memory fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from hesse.core.errors import MemoryBudgetError
from hesse.core.growth import Growth, settle, taken_bytes
from hesse.core.memory import Budget, current_budget, free_bytes, given_budget, memory, too_small
from hesse.core.progress import track

Result = TypeVar("Result")

_SURE = 0.25  # of the room: work that is estimated below it is done at once, unmeasured
_FIRST = 0.5  # of the room, by the estimate: the chunk that calibrates
_AIM = 0.8  # of the room, by the measurement: the chunks after it
_FARTHER = 0.62  # the same for chunks larger than any before: what freed memory can be used again for changes with their size
_FASTEST = 4  # times as large as the chunk before, at most
_TOLERANCE = 1.1  # by how much one item may pass the room before the budget is called too small
_LEFT = 0.05  # of the room: what chunks may leave behind unused before it is given back
_NOISE = 2**20  # bytes that a measurement may be wrong by
_UNASKED = 0.9  # of the free memory that work may take at most, whatever the budget


@dataclass(frozen=True)
class ChunkPlan:
    """What is known of some work before it begins.

    Attributes:
        limit: bytes that it may take, results included.
        device: where it runs.
        what: how an error names it.
        per_item: bytes that one item takes while it is worked on, as far as can be told; 0: unknown.
        kept: bytes of results, held when all is done.
        first: items of the chunk that calibrates, where nothing is known of them.
        is_given: whether the limit was set by the user (else half of the free memory).
        doubt: times `per_item` that an item may take, before it is measured.
    """

    limit: int
    device: torch.device
    what: str
    per_item: int = 0
    kept: int = 0
    first: int = 1
    is_given: bool = True
    doubt: int = 1

    @classmethod
    def within(
        cls,
        budget: Budget | None,
        device: torch.device,
        what: str,
        *,
        per_item: int = 0,
        kept: int = 0,
        first: int = 1,
        doubt: int = 1,
    ) -> ChunkPlan:
        """The plan for a budget as users pass it: bytes, fraction, text, or None for the one in force (and no doubt)."""
        given = given_budget(budget, device)
        limit = current_budget(None, device) if given is None else given
        return cls(limit, device, what, per_item, kept, first, given is not None, 1 if given is None else doubt)


@dataclass
class Experience:
    """What chunks of some work took, for more work of the same kind: the next batch of a data set.

    Attributes:
        seen: items of a chunk, and the bytes it took.
        ceiling: items that a chunk may have at most, since more have failed.
    """

    seen: list[tuple[int, int]] = field(default_factory=list)
    ceiling: int | None = None

    @property
    def most(self) -> int:
        """Items of the largest chunk so far; 0: there was none."""
        return max((count for count, _ in self.seen), default=0)

    @property
    def per_item(self) -> float:
        """Bytes an item at the worst, of chunks at least half as large as the largest: smaller ones tell of what is shared."""
        return max(taken / count for count, taken in self.seen if 2 * count >= self.most)

    def add(self, count: int, taken: int) -> None:
        """Remember a chunk; of chunks of one size the one that took most."""
        known = dict(self.seen)
        known[count] = max(taken, known.get(count, 0), 1)
        self.seen = list(known.items())


def in_chunks(
    total: int,
    work: Callable[[slice], Result],
    plan: ChunkPlan,
    label: str = "",
    experience: Experience | None = None,
) -> Iterator[tuple[slice, Result]]:
    """Do work on ``range(total)`` in consecutive chunks: ``(slice, work(slice))`` for each, in order.

    The first chunk is as large as the estimate allows and its growth of memory is measured; those after it are as large as the
    measurement allows. Where an allocation fails (or something inside finds its budget too small) the chunk is halved and done
    again. Inside `work` the budget in force is what the plan leaves.

    Args:
        total: number of items.
        work: turns a slice into a result; may be called again for a part of the same slice if it raised, so it must leave
            nothing behind that a second call does not overwrite.
        plan: what it may take, and what is known of it.
        label: shown as progress, if given.
        experience: of the same work on other items, to begin with; what is learned here is added to it.

    Raises:
        MemoryBudgetError: the results, or the work on a single item, pass the budget; `least` says what would do.

    Cost: nothing where the estimate is below a quarter of the budget; else a thread that takes 2 % of one core.
    """
    chunks = _Chunks(total, work, plan, experience or Experience())
    yield from track(chunks, label, total, size=lambda done: done[0].stop - done[0].start) if label else chunks


class _Chunks(Generic[Result]):
    """The loop behind `in_chunks`.

    Attributes:
        size: items of the next chunk.
        ceiling: items that a chunk may have at most.
    """

    def __init__(self, total: int, work: Callable[[slice], Result], plan: ChunkPlan, experience: Experience) -> None:
        self.total, self.work, self.plan, self.experience = total, work, plan, experience
        self.room = plan.limit - plan.kept
        if self.room < 1:
            raise too_small(plan.limit, plan.kept + max(plan.per_item, 1), plan.what)
        self.ceiling = max(min(total, experience.ceiling or total), 1)
        expected = float(plan.per_item * plan.doubt)
        if experience.most:  # less than what can be measured is no knowledge of more items
            expected = max(experience.per_item, min(_NOISE, _SURE * self.room) / experience.most)
        self.measures = expected * self.ceiling > _SURE * self.room or not expected
        self.size = self.ceiling
        self._ground: int | None = None
        if self.measures:
            if plan.device.type in ("cpu", "cuda"):
                self.room = max(min(self.room, int(_UNASKED * free_bytes(plan.device)) - plan.kept), 1)
            if plan.device.type == "cpu":
                settle()
            first = max(int(_FIRST * self.room / expected), 1) if expected else plan.first
            self.size = self._by_experience() if experience.most else min(first, self.ceiling)

    def _by_experience(self) -> int:
        """Items that take `_AIM` of the room; not much more of it by guess than was seen."""
        known = self.experience
        aim, farther = (int(share * self.room / known.per_item) for share in (_AIM, _FARTHER))
        return min(max(min(aim, max(farther, known.most)), 1), _FASTEST * known.most, self.ceiling)

    def __iter__(self) -> Iterator[tuple[slice, Result]]:
        done = 0
        while done < self.total:
            part = slice(done, min(done + self.size, self.total))
            failure, result = self._attempt(part)
            if failure is not None:
                self._shrink(part.stop - part.start, failure)
                continue
            yield part, result[0]
            del result
            done = part.stop

    def _attempt(self, part: slice) -> tuple[Exception | None, list[Result]]:
        growth = self._growth(part) if self.measures else None
        try:
            if growth is None:
                return None, [self._work(part)]
            with growth:
                result = self._work(part)
        except (MemoryError, RuntimeError) as error:
            if not is_allocation_failure(error):
                raise
            return error.with_traceback(None), []  # whose frames hold what was allocated
        self._adapt(part, growth)
        return None, [result]

    def _growth(self, part: slice) -> Growth:
        """A measurement that begins at the ground: what earlier chunks left behind unused is given back first."""
        if self.plan.device.type == "cpu" and self._ground is not None:
            left = taken_bytes(self.plan.device) - self._ground - self._kept(part)
            if left > max(_LEFT * self.room, _NOISE):
                settle()
        return Growth(self.plan.device)

    def _kept(self, part: slice) -> int:
        """Bytes of the results before a chunk."""
        return self.plan.kept * part.start // max(self.total, 1)

    def _work(self, part: slice) -> Result:
        if not self.plan.is_given:
            return self.work(part)
        with memory(max(self.room, 1)):
            return self.work(part)

    def _adapt(self, part: slice, growth: Growth) -> None:
        """The next chunk's size from what this one took, over the level before the first one and without earlier results."""
        count = part.stop - part.start
        self._ground = growth.start if self._ground is None else self._ground
        taken = growth.highest - self._ground - self._kept(part)
        self.experience.add(count, taken)
        if taken < _NOISE:
            self.size = min(_FASTEST * count, self.ceiling)
            return
        if count == 1 and self.plan.is_given and growth.bytes > _TOLERANCE * self.room + _NOISE:
            raise too_small(self.plan.limit, self.plan.kept + int(_TOLERANCE * growth.bytes), self.plan.what)
        self.size = self._by_experience()

    def _shrink(self, count: int, failure: Exception) -> None:
        if count > 1:
            self.size = self.ceiling = self.experience.ceiling = count // 2
            return
        if isinstance(failure, MemoryBudgetError):
            raise failure
        wanted = self.plan.kept + _tried_bytes(failure)
        raise too_small(self.plan.limit, max(wanted, self.plan.limit + 1), self.plan.what) from failure


def is_allocation_failure(error: BaseException) -> bool:
    """Whether an error says that memory could not be had: on CUDA, on a CPU, in Python, or by a budget of hesse."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and re.search(r"can't allocate memory|not enough memory", str(error)) is not None


def _tried_bytes(failure: BaseException) -> int:
    """How much the failed allocation asked for; 0 where its message does not say."""
    match = re.search(r"allocate ([\d.]+) (bytes|[KMG]iB)", str(failure))
    units = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    return int(float(match[1].rstrip(".")) * units[match[2]]) if match else 0
