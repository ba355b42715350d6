"""The benchmark of functional autograd: programs against closed forms and each other, rows end to end, tables."""

import json
import sys
from functools import partial

import pytest
import torch
from benchmarks.functional import run, suite, worker
from benchmarks.functional.micro import MICRO, network
from benchmarks.functional.micro_ways import WAYS as MICRO_WAYS
from benchmarks.functional.originals import RATE, ROWS, double, make_original
from benchmarks.functional.rows import COLUMNS, MICRO_ROWS, STEP_ROWS, TITLES
from benchmarks.functional.step_ways import WAYS as STEP_WAYS
from benchmarks.functional.tables import render
from torch import nn

TINY = {"seconds": 0.01, "least": 3, "most": 3}
COMPILED = ("compile", "native", "unguarded")


def drawn(name, dtype=torch.float64):
    return [t.to(dtype) for t in MICRO[name].data(torch.Generator().manual_seed(5))]


@pytest.mark.parametrize("name", MICRO)
def test_the_three_programs_of_a_row_agree(name):
    micro, tensors = MICRO[name], drawn(name)
    (_, ours), *_ = MICRO_WAYS["direct"](micro)
    for found in (micro.by_func(*tensors), ours(tensors)(*tensors)):
        torch.testing.assert_close([f.detach() for f in found], micro.by_hand(*tensors), rtol=1e-9, atol=1e-11)


def test_the_laplacian_is_the_trace_of_its_hessian_by_differences():
    """The loss of the row by central differences of the network, and its slope along the gradient."""
    *params, x, y = drawn("laplacian")
    h = 1e-3

    def loss(params):
        around = [network(params, x + h * e) + network(params, x - h * e) for e in torch.eye(3, dtype=x.dtype)]
        return ((sum(around) - 6 * network(params, x))[:, 0] / h**2 - y).square().mean()

    grads = MICRO["laplacian"].by_hand(*params, x, y)
    step = 1e-4
    ahead, behind = (loss([p + sign * step * g for p, g in zip(params, grads, strict=True)]) for sign in (1, -1))
    torch.testing.assert_close((ahead - behind) / (2 * step), sum(g.square().sum() for g in grads), rtol=1e-4, atol=0)


def test_per_sample_gradients_add_up():
    tensors = drawn("per_sample")
    whole = MICRO["mlp"].by_hand(*tensors)[1:]
    rows = MICRO["per_sample"].by_hand(*tensors)
    torch.testing.assert_close([r.mean(0) for r in rows], whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", ["direct", "replay"])
@pytest.mark.parametrize("row", ["logistic_batched", "automodule_single", "lstm_single"])
def test_training_steps_are_those_of_plain_gradient_descent(row, way):
    original = double(make_original(row))
    step, state = STEP_WAYS[way](original)
    params = {name: p.clone() for name, p in original.params.items()}
    for x, y in original.batches[:3]:
        leaves = {name: p.requires_grad_() for name, p in params.items()}
        value = original.loss(leaves, x, y)
        value.backward()
        params = {name: (p - RATE * p.grad).detach() for name, p in leaves.items()}
        torch.testing.assert_close(step(x, y), value.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(dict(state()), params, rtol=1e-12, atol=1e-13)


def test_the_module_beside_auto_modules_is_the_same_function():
    original = make_original("automodule_batched")
    x, y = original.batches[0]
    by_module = nn.functional.cross_entropy(original.plain(x), y)
    torch.testing.assert_close(original.loss(original.params, x, y), by_module)


def test_rows_and_columns_have_titles_and_ways():
    assert list(MICRO_ROWS) == list(MICRO) and list(STEP_ROWS) == ROWS
    assert set(COLUMNS["micro"]) == set(MICRO_WAYS) and set(COLUMNS["steps"]) == set(STEP_WAYS)
    assert len(TITLES) == len(MICRO_ROWS) + len(STEP_ROWS) + len(suite.ORDERS)


@pytest.mark.parametrize("way", [way for way in MICRO_WAYS if not way.startswith(COMPILED)])
def test_a_small_derivative_is_timed(way):
    found = worker._micro("mlp", way, {"budget": TINY})
    assert found["status"] == "ok" and found["error"] < 1e-5
    assert found["ratio"] > 0 and found["seconds"] > 0 and found["cold"] > 0 and found["rounds"] == 3


def test_a_training_step_is_timed():
    found = worker._steps("logistic_single", "replay", {"budget": TINY})
    assert found["status"] == "ok" and found["error"] < worker.TOLERANCE and found["notes"] == []


def stale(step):
    first = []

    def repeated(*batch):
        first.append(step(*batch) if not first else None)
        return first[0]

    return repeated


def test_what_is_wrong_is_not_timed(monkeypatch):
    def forgets(micro):
        yield "", lambda _: stale(micro.by_func)

    monkeypatch.setitem(MICRO_WAYS, "func", forgets)
    assert worker._micro("mlp", "func", {"budget": TINY})["status"] == "wrong"

    def stands_still(original):
        step, state = STEP_WAYS["hand"](original)
        return stale(step), state

    monkeypatch.setitem(STEP_WAYS, "direct", stands_still)
    assert worker._steps("logistic_single", "direct", {"budget": TINY})["status"] == "wrong"


def test_the_next_candidate_stands_in_for_one_that_fails(monkeypatch):
    def refuses(_):
        raise RuntimeError("not this one")

    def candidates(micro):
        yield "first", refuses
        yield "second", lambda _: micro.by_func

    monkeypatch.setitem(MICRO_WAYS, "func", candidates)
    assert worker._micro("mlp", "func", {"budget": TINY})["notes"] == ["of the second program"]
    monkeypatch.setitem(MICRO_WAYS, "func", lambda micro: iter([("first", refuses)]))
    assert worker._micro("mlp", "func", {"budget": TINY})["reason"] == "first: RuntimeError: not this one"


def test_disagreement_is_relative_to_each_tensor():
    a, b = torch.tensor([1e-4, 2e-4]), torch.tensor([5.0])
    assert worker.disagreement([a, b], [a.double(), b.double()]) == 0
    assert worker.disagreement([a * 1.5, b], [a.double(), b.double()]) == pytest.approx(0.5)
    assert worker.disagreement([a], [b.double()]) == float("inf")
    assert worker.disagreement([a / 0 * 0, b], [a.double(), b.double()]) == float("inf")


def test_programs_are_judged(monkeypatch):
    assert suite.outcome("nested_mlp:first", "replay") == {"status": "right"}
    assert suite.outcome("nested_mlp:second", "replay") == {"status": "right"}

    def judged(make):
        monkeypatch.setattr(suite, "_derivative", make)
        return suite.outcome("nested_mlp:first", "replay")["status"]

    def refuses(*_):
        raise suite.HesseError("asked", "found", "remedy")

    def fails(*_):
        raise ZeroDivisionError

    oracle = suite._by_oracle
    assert judged(lambda f, order, _: stale(oracle(f, order))) == "wrong"
    assert judged(lambda *_: partial(refuses)) == "refused" and judged(lambda *_: partial(fails)) == "failed"


def test_cases_are_some_programs_in_both_orders():
    few = suite.cases(5)
    assert len({case.split(":")[0] for case in few}) == 5 and few == suite.cases(5)
    assert len([case for case in suite.cases(1000) if case.endswith(":first")]) == len(suite.PROGRAMS)


def cell(quantity, library, ratio, *, notes=(), unit=1e-4, quartiles=None):
    low, high = quartiles or (ratio, ratio)
    return {
        "quantity": quantity, "library": library, "status": "ok", "ratio": ratio, "unit_seconds": unit, "cold": 1.25,
        "ratio_quartiles": [low, high], "notes": list(notes), "seconds": 1.0,
    }  # fmt: skip


def test_tables_show_ratios_failures_and_remarks():
    micro = [
        cell("mlp", "func", 3.0), cell("mlp", "direct", 1.0, unit=3e-4), cell("mlp", "replay", 0.5, quartiles=(0.3, 0.9)),
        cell("lstm", "func", 2.0, notes=["runs directly: why"]),
            {"quantity": "lstm", "library": "direct", "status": "wrong", "reason": "off"},
        {"quantity": "lstm", "library": "replay", "status": "failed", "reason": "no"},
    ]  # fmt: skip
    steps = [cell("mlp_single", "hand", 1.01), cell("mlp_single", "native", 0.25)]
    counts = [
        {"quantity": f"{name}:first", "library": "replay", "status": s} for name, s in (("a", "right"), ("b", "wrong"))
    ]
    text = render({
        "date": "today", "mode": "full", "torch": "2", "tables": [
            {"model": "micro", "quantities": ["mlp", "lstm"], "threads": 1, "cold": True, "results": micro},
            {"model": "steps", "quantities": ["mlp_single"], "threads": 2, "cold": False, "results": steps},
            {"model": "suite", "quantities": ["a:first", "b:first"], "threads": 1, "cold": False, "results": counts},
        ],
        "machine": {"processor": "p", "cores": 2, "system": "s", "python": "3", "load": 0.0},
    })  # fmt: skip
    assert "| MLP, value and gradient | 300 | 100 | ~50 |" in text
    assert "| LSTM of 20 steps, value and gradient | 200 (1) | wrong (2) | fails (3) |" in text
    assert "1. runs directly: why\n2. off\n3. no" in text
    assert "| MLP, one sample | 100 | 1.01 | 0.25 |" in text and "2 threads" in text
    assert "| MLP, value and gradient | 1.2 | 1.2 | 1.2 |" in text and text.count("First call") == 1
    assert "| gradient | hesse replay | 1 | 0 | 0 | 0 | 1 |" in text and "2 derivative programs" in text


def test_the_runner_end_to_end():
    args = run._parse(["--quick", "--steps", "logistic_single", "--threads", "1", "--ways", "hand"])
    (table,) = run.measure(args)["tables"]
    (result,) = table["results"]
    assert (result["library"], result["quantity"], result["status"]) == ("hand", "logistic_single", "ok")
    assert 0.3 < result["ratio"] < 3 and json.dumps(table)


def test_a_worker_that_dies_costs_one_row(monkeypatch):
    def start(python, job, **streams):
        dies = "import os, json; print(json.dumps({'event': 'start', 'quantity': 'mlp'}), flush=True); os._exit(3)"
        return run.measure_library.__globals__["subprocess"].Popen([sys.executable, "-c", dies], text=True, **streams)

    monkeypatch.setitem(run.measure_library.__globals__, "_start", start)
    job = {"model": "micro", "quantities": ["mlp"], "threads": 1, "folder": "x"}
    (result,) = run._measured(job, ["func"], cold=True)["results"]
    assert result["status"] == "failed" and "ended with 3" in result["reason"]


def test_choices(capsys):
    everything = run._parse([])
    assert everything.micro == list(MICRO) and everything.steps == ROWS and everything.programs == 0
    assert not any(way.startswith(COMPILED) for way in run._parse(["--quick"]).ways)
    only = run._parse(["--programs", "7"])
    assert only.micro == [] and only.steps == [] and only.programs == 7
    assert run._parse(["--micro", "lstm,mlp"]).micro == ["mlp", "lstm"]
    with pytest.raises(SystemExit):
        run._parse(["--steps", "resnet"])
    assert "resnet is not among" in capsys.readouterr().err


def test_the_page_has_its_markers():
    text = run.PAGE.read_text()
    assert text.count("<!-- table: begin -->") == 1 == text.count("<!-- table: end -->")
