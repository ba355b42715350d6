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
    functions, calls = fake_clock(monkeypatch, {"run": 0.75, "gradient": 0.25})
    found = timing(functions["run"], functions["gradient"], Budget(seconds=0.0, least=4, most=9))
    assert calls == ["gradient", "gradient", "run"] * 4
    assert (found.ratio, found.seconds, found.gradient_seconds, found.rounds) == (3.0, 0.75, 0.25, 4)
    assert found.ratio_quartiles == (3.0, 3.0)


@pytest.mark.parametrize(
    ("budget", "rounds"),
    [(Budget(100.0, 2, 5), 5), (Budget(2.5, 2, 50), 2), (Budget(3.0, 2, 50), 3), (Budget(0.0, 1, 5), 1)],
)
def test_budget_bounds_the_rounds(monkeypatch, budget, rounds):
    functions, _ = fake_clock(monkeypatch, {"run": 0.75, "gradient": 0.25})  # a round takes 1.25
    assert timing(functions["run"], functions["gradient"], budget).rounds == rounds


def test_medians_ignore_one_slow_round(monkeypatch):
    durations = {"run": 0.5, "gradient": 0.25}
    functions, calls = fake_clock(monkeypatch, durations)

    def run():
        durations["run"] = 50.0 if calls.count("run") == 2 else 0.5
        functions["run"]()

    assert timing(run, functions["gradient"], Budget(0.0, 5, 5)).ratio == 2.0


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
