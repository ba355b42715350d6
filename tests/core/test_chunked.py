"""The adaptive loop: what it covers, how it calibrates and adapts, and what it does where memory fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hesse.core import chunked
from hesse.core.chunked import ChunkPlan, in_chunks, is_allocation_failure
from hesse.core.errors import MemoryBudgetError
from hesse.core.memory import current_budget, memory
from hesse.core.progress import progress

CPU = torch.device("cpu")
MIB = 2**20


class Simulated:
    """A machine whose memory is what `work` says: bytes for a chunk of so many items, which the loop measures."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, needs: Callable[[int], int], held_per_item: int = 0) -> None:
        self.needs, self.held_per_item, self.sizes = needs, held_per_item, list[int]()
        self.level = self.highest = 0
        outer = self

        class Growth:
            def __init__(self, device: torch.device) -> None:
                self.start = self.highest = 0

            @property
            def bytes(self) -> int:
                return self.highest - self.start

            def __enter__(self) -> Growth:
                self.start = outer.level
                return self

            def __exit__(self, *_: object) -> None:
                self.highest = outer.highest

        monkeypatch.setattr(chunked, "Growth", Growth)
        monkeypatch.setattr(chunked, "taken_bytes", lambda device: self.level)
        monkeypatch.setattr(chunked, "free_bytes", lambda device: 2**50)

    def work(self, part: slice) -> slice:
        count = part.stop - part.start
        self.sizes.append(count)
        self.highest = self.level + self.needs(count)
        self.level += self.held_per_item * count
        return part


def covered(found: list[tuple[slice, slice]], total: int) -> bool:
    """Whether slices follow each other from 0 to the total, each given back as its own result."""
    ends = [0, *(part.stop for part, _ in found)]
    in_order = all(part.start == end and part == result for (part, result), end in zip(found, ends, strict=False))
    return in_order and ends[-1] == total


def test_what_is_small_is_done_at_once_and_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "Growth", None)
    plan = ChunkPlan(4000, CPU, "it", per_item=10)
    assert [part for part, _ in in_chunks(100, lambda part: part, plan)] == [slice(0, 100)]


def test_no_items_no_work() -> None:
    assert list(in_chunks(0, lambda part: pytest.fail("there is nothing to do"), ChunkPlan(10, CPU, "it"))) == []


@pytest.mark.parametrize(("per_item", "true"), [(MIB, MIB), (MIB, 3 * MIB), (MIB, MIB // 5), (0, MIB)])
def test_adapts_to_what_is_measured(monkeypatch: pytest.MonkeyPatch, per_item: int, true: int) -> None:
    machine = Simulated(monkeypatch, lambda count: count * true)
    found = list(in_chunks(1000, machine.work, ChunkPlan(100 * MIB, CPU, "it", per_item=per_item)))
    assert covered(found, 1000)
    settled = machine.sizes[4:-1]
    assert all(0.6 * 100 * MIB <= size * true <= 100 * MIB for size in settled), machine.sizes
    assert max(machine.sizes[1:]) * true <= 100 * MIB


def test_what_all_items_share_makes_chunks_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Simulated(monkeypatch, lambda count: 40 * MIB + count * MIB)
    list(in_chunks(500, machine.work, ChunkPlan(100 * MIB, CPU, "it", per_item=MIB)))
    assert max(machine.needs(size) for size in machine.sizes) <= 100 * MIB
    assert max(machine.sizes) > 20


def test_results_take_their_part(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Simulated(monkeypatch, lambda count: count * MIB, held_per_item=MIB // 8)
    list(in_chunks(400, machine.work, ChunkPlan(100 * MIB, CPU, "it", per_item=MIB, kept=50 * MIB)))
    assert machine.level == 50 * MIB
    assert max(machine.sizes) * MIB <= 50 * MIB
    assert min(machine.sizes[1:-1]) * MIB >= 20 * MIB


def failing(limit: int, error: Callable[[], Exception]) -> tuple[Callable[[slice], slice], list[int]]:
    tried: list[int] = []

    def work(part: slice) -> slice:
        tried.append(part.stop - part.start)
        if tried[-1] > limit:
            raise error()
        return part

    return work, tried


FAILURES: dict[str, Callable[[], Exception]] = {
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                                "tried to allocate 5368709120 bytes. Error code 12 (Cannot allocate memory)"),
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.00 GiB. GPU 0 has ..."),
    "python": MemoryError,
    "budget": lambda: MemoryBudgetError("Too small.", least=77),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("limit", [1, 3, 40])
def test_halved_where_memory_fails(kind: str, limit: int) -> None:
    work, tried = failing(limit, FAILURES[kind])
    found = list(in_chunks(100, work, ChunkPlan(2**40, CPU, "it", per_item=1)))
    assert covered(found, 100)
    assert tried[0] == 100
    assert tried[1] == 50
    assert all(part.stop - part.start <= limit for part, _ in found)


@pytest.mark.parametrize("kind", FAILURES)
def test_one_item_that_fails_says_the_least(kind: str) -> None:
    work, tried = failing(0, FAILURES[kind])
    with pytest.raises(MemoryBudgetError) as caught:
        list(in_chunks(8, work, ChunkPlan(2**20, CPU, "the rows", per_item=1)))
    assert tried == [8, 4, 2, 1]
    expected = {"cpu": 5 * 2**30, "cuda": 5 * 2**30, "python": 2**20 + 1, "budget": 77}
    assert caught.value.least == expected[kind]


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no"), KeyError("x")])
def test_other_errors_pass(error: Exception) -> None:
    def work(part: slice) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        list(in_chunks(8, work, ChunkPlan(2**20, CPU, "it", per_item=1)))
    assert caught.value is error
    assert not is_allocation_failure(error)


def test_results_before_a_failure_are_not_made_again() -> None:
    seen: list[int] = []

    def work(part: slice) -> Tensor:
        if part.start >= 50 and part.stop - part.start > 5:
            raise MemoryError
        return torch.arange(part.start, part.stop)

    plan = ChunkPlan(200, CPU, "it", per_item=2)
    for _, values in in_chunks(100, work, plan):
        seen += values.tolist()
    assert seen == list(range(100))


def test_results_that_do_not_fit_are_refused_before_any_work() -> None:
    with pytest.raises(MemoryBudgetError, match="too small for the rows") as caught:
        list(in_chunks(8, lambda part: pytest.fail("must not run"), ChunkPlan(100, CPU, "the rows", per_item=5, kept=100)))
    least = caught.value.least
    assert [part for part, _ in in_chunks(8, lambda part: None, ChunkPlan(least, CPU, "the rows", per_item=5, kept=100))]


def test_an_item_that_is_measured_too_large_is_refused_and_the_least_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Simulated(monkeypatch, lambda count: count * 30 * MIB)
    with pytest.raises(MemoryBudgetError) as caught:
        list(in_chunks(100, machine.work, ChunkPlan(20 * MIB, CPU, "it", per_item=MIB)))
    assert machine.sizes == [10, 1]
    machine.sizes.clear()
    list(in_chunks(100, machine.work, ChunkPlan(caught.value.least, CPU, "it", per_item=16 * MIB)))
    assert machine.sizes == [1] * 100
    unasked = ChunkPlan(20 * MIB, CPU, "it", per_item=MIB, is_given=False)
    assert covered(list(in_chunks(100, machine.work, unasked)), 100), "without a budget of the user's one item is done anyhow"


def test_inside_the_budget_is_what_is_left() -> None:
    with memory(10_000):
        plan = ChunkPlan.within(None, CPU, "it", per_item=1, kept=4000)
        seen = [budget for _, budget in in_chunks(4, lambda part: current_budget(None), plan)]
        assert seen == [6000]
        assert current_budget(None) == 10_000


def test_measured_growth_of_real_tensors() -> None:
    sizes: list[int] = []

    def work(part: slice) -> Tensor:
        sizes.append(part.stop - part.start)
        return torch.ones(sizes[-1], 2**18).mul(2).sum(1)  # 2 MiB an item

    found = torch.cat([sums for _, sums in in_chunks(60, work, ChunkPlan.within("24MiB", CPU, "it", per_item=2**19))])
    assert torch.equal(found, torch.full((60,), 2.0**19))
    assert max(sizes[1:]) <= 12, "the estimate was a quarter of the truth, which is measured"


def test_progress_counts_items() -> None:
    class Sink:
        total, steps = None, 0

        def start(self, label: str, total: int | None) -> int:
            self.total = total
            return 0

        def advance(self, handle: int, steps: int) -> None:
            self.steps += steps

        def finish(self, handle: int) -> None: ...

    sink = Sink()
    with pytest.MonkeyPatch.context() as patch, progress(sink):
        patch.setattr("hesse.core.progress._PATIENCE_SECONDS", -1.0)
        work, _ = failing(7, MemoryError)
        list(in_chunks(30, work, ChunkPlan(2**30, CPU, "it", per_item=1), "work"))
    assert (sink.total, sink.steps) == (30, 30)
