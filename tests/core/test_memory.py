"""The budget: what texts mean, which of argument, context, variable and default counts, chunks, refusals."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from hesse.core import memory as module
from hesse.core.errors import MemoryBudgetError, StructureError
from hesse.core.memory import (
    chunk_size,
    current_budget,
    format_bytes,
    free_bytes,
    given_budget,
    memory,
    parse_budget,
    parse_bytes,
)

FREE = 1000_000


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device="cpu": FREE)
    monkeypatch.delenv("HESSE_MEMORY", raising=False)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1, 1),
        (2_000_000_000, 2_000_000_000),
        (0.25, FREE // 4),
        (1.0, FREE),
        ("123", 123),
        ("123B", 123),
        ("0.25", FREE // 4),
        ("1.0", FREE),
        ("2K", 2048),
        ("2KB", 2048),
        ("2KiB", 2048),
        ("2kib", 2048),
        ("1.5 MiB", 3 * 2**19),
        (" 2 GiB ", 2**31),
        ("3G", 3 * 2**30),
        (".5T", 2**39),
        ("5.M", 5 * 2**20),
        ("1PiB", 2**50),
        ("2 p", 2**51),
        ("1", 1),
        ("2e9", 2_000_000_000),
        ("2E+09", 2_000_000_000),
        ("1.5e3", 1500),
        (".25e1 B", 2),
        ("1.0e0", 1),
        ("1e3 KiB", 1_024_000),
        ("1.1GiB", 11 * 2**30 // 10),
    ],
)
def test_meanings(budget: int | float | str, expected: int) -> None:
    assert parse_budget(budget) == expected


@pytest.mark.parametrize(
    "budget",
    [0, -1, 0.0, -0.5, 1.5, float("nan"), float("inf"), True, None, "", "two", "-2GiB", "2 EiB", "2GiBs",
     "1.5", "1.2.3GiB", ".", "..", "0", "0GiB", "0.1B", "1e-3", "e9", "1e999", "2e", "50%", "GiB"],
)  # fmt: skip
def test_what_means_nothing_is_refused(budget: object) -> None:
    with pytest.raises(StructureError, match="'2GiB'"):
        parse_budget(budget)  # pyright: ignore[reportArgumentType]


def test_free_bytes_of_this_machine() -> None:
    assert 2**20 < free_bytes("cpu") < 2**50


class TestOrder:
    """The argument beats the context, which beats the variable, which beats half of what is free."""

    def test_default_is_half(self) -> None:
        assert current_budget(None) == FREE // 2

    def test_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HESSE_MEMORY", "3KiB")
        assert current_budget(None) == 3072
        monkeypatch.setenv("HESSE_MEMORY", "")
        assert current_budget(None) == FREE // 2
        monkeypatch.setenv("HESSE_MEMORY", "much")
        with pytest.raises(StructureError, match=r"'much' in the .* HESSE_MEMORY\n.*set HESSE_MEMORY to 2GiB"):
            current_budget(None)
        with memory("4KiB"):
            assert current_budget(None) == 4096
        for text, expected in (("1", 1), ("1.0", FREE), ("2e3", 2000)):
            monkeypatch.setenv("HESSE_MEMORY", text)
            assert current_budget(None) == expected

    def test_context_and_argument(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HESSE_MEMORY", "3KiB")
        with memory("4KiB"):
            assert current_budget(None) == 4096
            assert current_budget(77) == 77
            with memory(0.1):
                assert current_budget(None) == FREE // 10
            assert current_budget(None) == 4096
        assert current_budget(None) == 3072

    def test_context_ends_with_an_exception(self) -> None:
        with pytest.raises(KeyError), memory(5):
            raise KeyError
        assert current_budget(None) == FREE // 2

    def test_a_wrong_budget_fails_at_the_with_statement_and_leaves_the_old(self) -> None:
        with memory(5):
            with pytest.raises(StructureError), memory("lots"):
                pytest.fail("the block must not run")
            assert current_budget(None) == 5

    def test_context_belongs_to_its_thread(self) -> None:
        seen: list[int] = []
        with memory(5):
            thread = threading.Thread(target=lambda: seen.append(current_budget(None)))
            thread.start()
            thread.join()
        assert seen == [FREE // 2]


class TestAgain:
    """One object, entered as often as wanted."""

    def test_one_after_the_other_and_inside_of_itself(self) -> None:
        context = memory("4KiB")
        assert repr(context) == "hesse.memory('4KiB')"
        for _ in range(2):
            with context as entered, memory(5), context:
                assert current_budget(None) == 4096 and entered is context
            assert current_budget(None) == FREE // 2
        with context:
            with context:
                pass
            assert current_budget(None) == 4096
            with pytest.raises(KeyError), context:
                raise KeyError
            assert current_budget(None) == 4096
        assert current_budget(None) == FREE // 2

    def test_as_a_decorator(self) -> None:
        @memory(77)
        def work(depth: int, *, other: int = 3) -> int:
            """Asks for the budget."""
            assert current_budget(None) == 77
            return depth + other if depth == 0 else work(depth - 1, other=other)

        assert (work(2), work(0, other=4)) == (3, 4)
        assert work.__doc__ == "Asks for the budget." and current_budget(None) == FREE // 2

        def later() -> Iterator[int]:
            yield current_budget(None)

        async def awaited() -> int:
            return current_budget(None)

        for function in (later, awaited, FREE, type(self)):
            with pytest.raises(StructureError, match=r"with hesse\.memory\(77\):"):
                memory(77)(function)  # pyright: ignore

    def test_in_two_threads_at_once(self) -> None:
        context, met, seen = memory(5), threading.Barrier(2), []

        def work(depth: int) -> None:
            with context:
                met.wait(20)
                with memory(depth):
                    met.wait(20)
                    seen.append(current_budget(None) == depth)
                met.wait(20)
                seen.append(current_budget(None) == 5)
            seen.append(current_budget(None) == FREE // 2)

        threads = [threading.Thread(target=work, args=(depth,)) for depth in (7, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [True] * 6

    def test_in_generators_that_end_in_another_order(self) -> None:
        def steps(budget: int) -> Iterator[int]:
            with memory(budget):
                while True:
                    yield current_budget(None)

        first, second = steps(5), steps(6)
        assert (next(first), next(second)) == (5, 6)
        first.close()
        assert current_budget(None) == 6, "the first one took back its own budget, not that of the second"
        second.close()
        assert current_budget(None) == FREE // 2


@pytest.mark.parametrize(("size", "expected"), [(1, 1), ("64MiB", 2**26), ("123", 123), ("2 kB", 2048), (np.int64(7), 7)])
def test_sizes(size: int | str, expected: int) -> None:
    assert parse_bytes(size, "chunk_bytes") == expected


@pytest.mark.parametrize("size", [0, -1, 1.5, 0.5, True, None, "", "much", "0", "-2MiB", "0.5", float("nan")])
def test_sizes_that_are_none(size: object) -> None:
    with pytest.raises(StructureError, match="chunk_bytes= is a number of bytes"):
        parse_bytes(size, "chunk_bytes")  # pyright: ignore[reportArgumentType]


def test_given_budget_is_none_where_nobody_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert given_budget(None) is None
    assert given_budget(77) == 77
    monkeypatch.setenv("HESSE_MEMORY", "3KiB")
    assert given_budget(None) == 3072
    with memory(5):
        assert given_budget(None) == 5


def test_nothing_is_read_while_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: object = "cpu") -> int:
        raise AssertionError("what is free was asked for")

    monkeypatch.setattr(module, "free_bytes", refuse)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert current_budget(None) == 2**33
    assert current_budget(77) == 77


class TestChunkSize:
    """As many items as fit, at least one, else an error that says the least budget."""

    @pytest.mark.parametrize(
        ("total", "per_item", "fixed", "budget", "expected"),
        [(10, 100, 0, 1000, 10), (10, 100, 1, 1000, 9), (10, 100, 0, 10**9, 10), (10, 100, 899, 1000, 1),
         (10, 0, 0, 1, 1), (10, 0, 0, 100, 10), (0, 100, 0, 1, 1)],
    )  # fmt: skip
    def test_fits(self, total: int, per_item: int, fixed: int, budget: int, expected: int) -> None:
        assert chunk_size(total, per_item, fixed, budget, "the rows") == expected

    @pytest.mark.parametrize(("per_item", "fixed", "budget"), [(100, 0, 99), (100, 950, 1000), (1, 5000, 1000)])
    def test_says_the_least_that_would_do(self, per_item: int, fixed: int, budget: int) -> None:
        with pytest.raises(MemoryBudgetError, match="too small for the rows") as caught:
            chunk_size(10, per_item, fixed, budget, "the rows")
        least = caught.value.least
        assert str(least) in caught.value.remedy
        assert chunk_size(10, per_item, fixed, least, "the rows") == 1
        with pytest.raises(MemoryBudgetError):
            chunk_size(10, per_item, fixed, least - 1, "the rows")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**31, "2.0 GiB"),
     (3 * 2**40, "3.0 TiB"), (5000 * 2**40, "5000.0 TiB")],
)  # fmt: skip
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text
