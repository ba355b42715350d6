"""Progress: nothing under a second, then start, advance, finish; nested; one thread; exceptions."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator

import pytest

from hesse.core import progress as module
from hesse.core.errors import MissingExtraError
from hesse.core.progress import progress, track


class Recorder:
    """A sink that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def start(self, label: str, total: int | None) -> int:
        self.told.append(("start", label, total))
        return len(self.told)

    def advance(self, handle: int, steps: int) -> None:
        self.told.append(("advance", steps))

    def finish(self, handle: int) -> None:
        self.told.append(("finish",))


class Clock:
    """A clock that goes on only when told."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def work(items: Iterable[int], clock: Clock, seconds: float, label: str = "rows") -> list[int]:
    done = []
    for item in track(items, label):
        clock.now += seconds
        done.append(item)
    return done


def test_outside_the_context_nothing_but_the_items(clock: Clock) -> None:
    assert work(range(3), clock, 10.0) == [0, 1, 2]


def test_nothing_is_shown_under_a_second(clock: Clock) -> None:
    sink = Recorder()
    with progress(sink):
        assert work(range(9), clock, 0.1) == list(range(9))
    assert sink.told == []


def test_shown_after_a_second_with_the_steps_done_before(clock: Clock) -> None:
    sink = Recorder()
    with progress(sink):
        work(range(5), clock, 0.4)
    assert sink.told == [("start", "rows", 5), ("advance", 3), ("advance", 1), ("advance", 1), ("finish",)]


def test_steps_add_up_to_the_total(clock: Clock) -> None:
    sink = Recorder()
    with progress(sink):
        work(range(17), clock, 0.3)
    assert sum(entry[1] for entry in sink.told if entry[0] == "advance") == 17


def test_total_of_iterables_without_a_length(clock: Clock) -> None:
    sink = Recorder()
    with progress(sink):
        work(iter(range(3)), clock, 2.0)
        for _ in track(iter(range(2)), "given", total=2):
            clock.now += 2.0
    assert [entry for entry in sink.told if entry[0] == "start"] == [
        ("start", "rows", None),
        ("start", "given", 2),
    ]


def test_nested_loops_are_told_apart(clock: Clock) -> None:
    sink = Recorder()
    with progress(sink):
        for _ in track(range(2), "outer"):
            work(range(2), clock, 0.8, "inner")
    labels = [entry[1] for entry in sink.told if entry[0] == "start"]
    assert labels == ["inner", "outer", "inner"]
    assert sum(entry[0] == "finish" for entry in sink.told) == 3


def test_nested_contexts_go_back_to_the_outer_sink(clock: Clock) -> None:
    outer, inner = Recorder(), Recorder()
    with progress(outer):
        with progress(inner):
            work(range(1), clock, 2.0, "in")
        work(range(1), clock, 2.0, "out")
    work(range(1), clock, 2.0, "after")
    assert [sink.told[0][1] for sink in (outer, inner)] == ["out", "in"]
    assert sum(len(sink.told) for sink in (outer, inner)) == 6


def test_an_exception_finishes_the_task_and_leaves_the_context(clock: Clock) -> None:
    sink = Recorder()

    def fail() -> None:
        for _ in track(range(5), "rows"):
            clock.now += 2.0
            if clock.now > 4.0:
                raise KeyError("stop")

    with pytest.raises(KeyError), progress(sink):
        fail()
    assert sink.told[0][0] == "start"
    assert sink.told[-1] == ("finish",)
    work(range(2), clock, 2.0)
    assert sink.told[-1] == ("finish",)


def test_a_loop_that_breaks_finishes(clock: Clock) -> None:
    sink = Recorder()
    with progress(sink):
        for item in track(range(100), "rows"):
            clock.now += 2.0
            if item == 2:
                break
    assert sink.told[-1] == ("finish",)


def test_errors_of_the_iterable_pass_through(clock: Clock) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("data")

    with progress(Recorder()), pytest.raises(ValueError, match="data"):
        work(broken(), clock, 2.0)


def test_another_thread_is_not_shown(clock: Clock) -> None:
    sink = Recorder()
    with progress(sink):
        thread = threading.Thread(target=work, args=(range(3), clock, 2.0))
        thread.start()
        thread.join()
    assert sink.told == []


def test_bars_are_drawn_on_standard_error_only(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with progress():
        assert work(range(3), clock, 2.0) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_without_rich_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hesse\[report\]'"), progress():
        pytest.fail("the block must not run")
    sink = Recorder()
    with progress(sink):  # a sink of one's own needs no rich
        assert list(track([1], "rows")) == [1]
