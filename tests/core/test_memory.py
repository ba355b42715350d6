"""The budget: what texts mean, which of argument, context, variable and default counts, chunks, refusals."""

from __future__ import annotations

import threading

import pytest

from hesse.core import memory as module
from hesse.core.errors import MemoryBudgetError, StructureError
from hesse.core.memory import chunk_size, current_budget, format_bytes, free_bytes, given_budget, memory, parse_budget

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
    ],
)
def test_meanings(budget: int | float | str, expected: int) -> None:
    assert parse_budget(budget) == expected


@pytest.mark.parametrize(
    "budget",
    [0, -1, 0.0, -0.5, 1.5, float("nan"), float("inf"), True, None, "", "two", "-2GiB", "2 PiB", "2GiBs",
     "1.5", "1.2.3GiB", ".", "..", "0", "0GiB", "0.1B", "1e9", "50%", "GiB"],
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
        with pytest.raises(StructureError, match="much"):
            current_budget(None)

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
