"""The benchmark of inverse convolutions: ways, references, tables."""

import dataclasses
import json
import math
import sys

import pytest
import torch
from benchmarks.convolutions import run, worker
from benchmarks.convolutions.aims import EPS, Aim, Found, aims
from benchmarks.convolutions.cases import CASES, QUICK, TITLES, WAYS, Case
from benchmarks.convolutions.tables import render
from benchmarks.convolutions.ways import way
from benchmarks.environments import PEERS

TINY = Case("tiny", 3, 7, ("hesse", "cgls", "scipy", "dense"), noise=0.3)
CIRCULAR = dataclasses.replace(TINY, padding_mode="circular", batch=2)


def matrix(case):
    """A column for each number of a picture, by loops over the taps of the kernel."""
    weight, n, c = case.weight(), case.side, case.channels
    M = torch.zeros(c, n, n, c, n, n, dtype=torch.float64)
    for r in range(n):
        for s in range(n):
            for k in range(3):
                for m in range(3):
                    row, column = r + k - 1, s + m - 1
                    if case.padding_mode == "circular":
                        row, column = row % n, column % n
                    if 0 <= row < n and 0 <= column < n:
                        M[:, r, s, :, row, column] += weight[:, :, k, m]
    return M.reshape(c * n * n, c * n * n)


@pytest.mark.parametrize("case", [TINY, CIRCULAR], ids=["zeros", "circular"])
def test_the_convolution_is_that_of_its_matrix(case):
    x, M = case.pictures(), matrix(case)
    y = case.forward(case.weight(), x)
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ M.T)
    assert worker.largest_singular_value(case, case.weight()) == pytest.approx(torch.linalg.matrix_norm(M, 2).item(), rel=0.02)
    if case is TINY:
        torch.testing.assert_close(case.adjoint(case.weight(), y).flatten(1), y.flatten(1) @ M)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hesse", "krylov", "cgls", "scipy", "dense"])
def test_ways_invert_what_can_be_inverted(name, monkeypatch):
    monkeypatch.setattr("benchmarks.convolutions.ways.STEPS", 60)
    weight, x = TINY.weight(), TINY.pictures()
    chosen = way(name, TINY, weight)
    chosen.prepare()
    assert (chosen.solve(TINY.forward(weight, x)) - x).norm() < 1e-5 * x.norm()


@torch.no_grad()
def test_the_usual_answer_is_right_on_a_torus_and_nowhere_else():
    for case, is_right in ((CIRCULAR, True), (TINY, False)):
        weight, x = case.weight(), case.pictures()
        fourier = way("fourier", case, weight)
        fourier.prepare()
        error = (fourier.solve(case.forward(weight, x)) - x).norm() / x.norm()
        assert bool(error < 1e-12) is is_right


@torch.no_grad()
def test_what_a_worker_measures():
    found = worker.measure(TINY, "hesse")
    assert found["status"] == "ok" and min(found["prepare"], found["first"], found["solve"]) > 0
    assert found["error"] < 1e-12 and found["backward"] < 1e-14 and found["peak"] >= found["before"] > 10**7
    condition = torch.linalg.cond(matrix(TINY)).item()
    assert found["condition"] == pytest.approx(condition, rel=0.2) and found["truncated"] == 0
    circular = worker.measure(CIRCULAR, "circular")
    assert circular["ratio"] > 0 and circular["forward"] > 0 and "once_seconds" not in circular


@torch.no_grad()
def test_errors_are_told():
    weight, x = TINY.weight(), TINY.pictures()
    y = TINY.forward(weight, x)
    found = worker.quality(TINY, weight, (x, y, 1.1 * x))
    assert found["error"] == pytest.approx(0.1) and found["residual"] == pytest.approx(0.1) and found["backward"] > 0.02
    assert worker.quality(TINY, weight, (x, y, x * math.nan))["status"] == "failed"


@torch.no_grad()
def test_truncated_answers_are_compared_with_the_dense_one(tmp_path):
    case = dataclasses.replace(TINY, noise=math.inf, channels=1, rtol=0.2, ways=("hesse", "dense"))
    results = []
    for name in case.ways:
        results.append({"case": "tiny", "way": name, **worker.measure(case, name, str(tmp_path), "tiny")})
    weight, x = case.weight(), case.pictures()
    y = case.forward(weight, x).flatten(1)
    expected = y @ torch.linalg.pinv(matrix(case), rtol=0.2).T
    torch.testing.assert_close(torch.load(tmp_path / "tiny-dense.pt").flatten(1), expected, rtol=1e-9, atol=1e-9)
    assert results[0]["truncated"] > 0 and results[0]["error"] > 1e-3
    run.compare_with_dense(case, "tiny", str(tmp_path), results)
    assert results[0]["error"] < 1e-9 and "error" not in results[1]


def test_a_worker_that_dies_or_takes_too_long_is_told():
    job = {"case": "posted", "way": "fourier", "threads": 1, "folder": "", "set": "quick"}
    assert "more than" in run.ask(sys.executable, job, 0.01)["reason"]
    assert run.ask(sys.executable, job | {"way": "nobody"}, 100.0)["reason"].startswith("KeyError")
    assert "ended with" in run.ask("/bin/false", job, 100.0)["reason"]


def test_the_runner_end_to_end():
    *_, report = run.measure(run._parse(["--quick", "--cases", "posted", "--ways", "fourier,hesse", "--threads", "1"]))
    by_way = {result["way"]: result for result in report["results"]}
    assert by_way["fourier"]["error"] > 0.3 and by_way["hesse"]["error"] < 1e-6, by_way
    text = render(report)
    assert f"### {QUICK['posted'].title}" in text and "| FFT, as usual |" in text and "### Aims" not in text
    assert json.dumps(report)


def test_cases_and_ways_have_names():
    assert set(WAYS) == set(TITLES) and set(WAYS.values()) <= {"hesse", "torch", *PEERS} and set(QUICK) <= set(CASES)
    for case in (*CASES.values(), *QUICK.values()):
        assert set(case.ways) <= set(WAYS) and case.weight().shape == (case.channels, case.channels, 3, 3)
    expected = torch.manual_seed(0) and torch.randn(32, 32, 3, 3).double()
    assert torch.equal(CASES["posted"].weight(), expected)


def ok(case, way, **fields):
    return {
        "case": case,
        "way": way,
        "status": "ok",
        "prepare": 1.0,
        "first": 0.7,
        "solve": 0.5,
        "before": 0,
        "peak": 2**30,
        **fields,
    }


def test_tables_show_errors_failures_and_aims():
    quality = {"error": 3e-9, "residual": 1e-15, "backward": 2e-16}
    results = [
        ok(
            "posted",
            "hesse",
            **quality,
            method="boundary",
            condition=1.5e8,
            condition_seconds=2.0,
            once_seconds=0.1,
            truncated=0,
        ),
        ok("posted", "cgls", **quality, steps=2_000),
        {"case": "posted", "way": "deepinv", "status": "failed", "reason": "more than 300 s"},
        ok("circular", "circular", **quality, ratio=2.5, forward=0.2, method="circular", condition=9.0, condition_seconds=0.0),
        ok("truncated", "hesse", residual=0.1, backward=0.1, prepare=0.3),
        ok("truncated", "dense", residual=0.1, backward=0.1, prepare=24.3),
    ]
    machine = {"processor": "p", "cores": 2, "system": "s", "python": "3", "load": 0.0}
    about = {"date": "today", "mode": "full", "threads": 2, "torch": "2", "scipy": "1", "deepinv": "0", "machine": machine}
    text = render(about | {"results": results})
    assert "| hesse | 1.00 s | 700 ms | 500 ms | - | 3.0e-09 | 1.0e-15 | 2.0e-16 | 1.00 GiB |" in text
    assert "| CGLS, 2,000 steps | 1.00 s | 700 ms | 500 ms | 2,000 |" in text and "| deepinv, CG | fails |" in text
    assert "- random kernel, 32 x 128 x 128, deepinv, CG: more than 300 s" in text
    assert "condition 1.5e+08, found in 2.00 s" in text and "not refined: 100 ms" in text
    assert "| posted case: set-up | at most 7 s | 1 s | reached |" in text
    assert "| posted case: refined and certified solution | at most 0.4 s | 0.5 s | missed |" in text
    assert "batch of 16 / convolution | at most 2x | 2.5x | missed |" in text
    assert "dense / hesse | at least 20x | 25x | reached |" in text
    found = Found(results)
    assert next(a for a in aims() if "rounding unit" in a.title).value(found) == pytest.approx(3e-9 / (1.5e8 * EPS))


def test_aims_name_what_is_measured():
    assert all(aim.value(Found([])) is None for aim in aims()) and len({aim.title for aim in aims()}) == len(aims())
    assert not Aim("", 2, lambda _: 0).reached(3) and Aim("", 2, lambda _: 0, least=True).reached(3)


def test_choices_and_the_page(capsys):
    assert run._parse([]).cases == list(CASES) and run._parse([]).ways == list(WAYS)
    with pytest.raises(SystemExit):
        run._parse(["--ways", "magic"])
    assert "magic is not among" in capsys.readouterr().err
    text = run.PAGE.read_text()
    assert text.count("<!-- table: begin -->") == 1 == text.count("<!-- table: end -->")
