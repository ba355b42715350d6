import pytest
import torch
from benchmarks.measure import Budget, peak_growth, timing

from benchmarks import measure


def fake_clock(monkeypatch, durations):
    """A clock that only the functions returned here move: name -> function that takes `durations[name]`."""
    now, calls = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def function(name):
        def run():
            calls.append(name)
            now[0] += durations[name]

        return run

    return {name: function(name) for name in durations}, calls


def test_run_and_gradient_are_interleaved_and_compared(monkeypatch):
    functions, calls = fake_clock(monkeypatch, {"run": 0.09375, "gradient": 0.03125})
    found = timing(functions["run"], functions["gradient"], Budget(seconds=1.0, least=4, most=4))
    assert calls == ["gradient", "gradient"] + ["run", "gradient", "gradient"] * 4
    assert (found.ratio, found.seconds, found.gradient_seconds, found.rounds) == (3.0, 0.09375, 0.03125, 4)
    assert found.ratio_quartiles == (3.0, 3.0) and found.ratio_of_minima == 3.0


@pytest.mark.parametrize(("run", "count"), [(0.03125, 1), (0.25, 2), (0.375, 3), (9.0, 4)])
def test_more_gradients_are_timed_beside_a_long_run(monkeypatch, run, count):
    functions, calls = fake_clock(monkeypatch, {"run": run, "gradient": 0.03125})
    timing(functions["run"], functions["gradient"], Budget(seconds=0.0, least=3, most=9))
    assert calls == ["gradient"] * 2 + ["run", *["gradient"] * (1 + count)] * 3


def test_no_gradient_is_left_untimed_where_one_is_long(monkeypatch):
    functions, calls = fake_clock(monkeypatch, {"run": 1.5, "gradient": 0.5})
    timing(functions["run"], functions["gradient"], Budget(seconds=0.0, least=3, most=9))
    assert calls == ["gradient", "gradient"] + ["run", "gradient"] * 3


@pytest.mark.parametrize(
    ("budget", "rounds"),
    [
        (Budget(100.0, 4, 7), 7),  # enough of them
        (Budget(4.5, 4, 50), 5),  # out of time
        (Budget(1.5, 6, 50), 6),  # out of time, but patient
        (Budget(1.0, 9, 50), 5),  # out of patience
        (Budget(0.0, 9, 50), 3),
    ],
)
def test_budget_bounds_the_rounds(monkeypatch, budget, rounds):
    functions, _ = fake_clock(monkeypatch, {"run": 0.75, "gradient": 0.25})  # a round takes 1.0
    assert timing(functions["run"], functions["gradient"], budget).rounds == rounds


def test_medians_ignore_one_slow_round(monkeypatch):
    durations = {"run": 0.5, "gradient": 0.25}
    functions, calls = fake_clock(monkeypatch, durations)

    def run():
        durations["run"] = 50.0 if calls.count("run") == 2 else 0.5
        functions["run"]()

    assert timing(run, functions["gradient"], Budget(9e9, 5, 5)).ratio == 2.0


def test_a_machine_that_becomes_slow_for_a_while_does_not_matter(monkeypatch):
    """Each run is compared with the gradients beside it; only the one at the change sees both speeds."""
    durations = {"run": 0.5, "gradient": 0.25}
    functions, calls = fake_clock(monkeypatch, durations)

    def run():
        slow = calls.count("run") < 5
        durations.update({"run": 5.0, "gradient": 2.5} if slow else {"run": 0.5, "gradient": 0.25})
        functions["run"]()

    found = timing(run, functions["gradient"], Budget(9e9, 11, 11))
    assert found.ratio == 2.0 and found.ratio_quartiles == (2.0, 2.0)


def test_peak_growth_sees_what_is_freed_within_the_call():
    def run():
        big = torch.ones(16 * 2**20)  # 64 MiB
        return big[:10].clone()

    found = peak_growth(run)
    if found is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert 60 * 2**20 < found < 80 * 2**20


def test_peak_growth_does_not_count_what_was_there_before():
    kept = torch.ones(16 * 2**20)
    found = peak_growth(lambda: kept[:10].clone())
    if found is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert found < 8 * 2**20


def test_a_failing_run_is_not_taken_for_a_missing_meter():
    def run():
        raise OSError("from the run itself")

    with pytest.raises(OSError, match="from the run itself"):
        peak_growth(run)
