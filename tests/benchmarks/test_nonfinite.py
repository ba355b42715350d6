"""The benchmark of faults: each fault spoils something, no harmless program does, and answers are judged by the marked line."""

import json
import math
import os
import signal
import time

import pytest
import torch
from benchmarks.nonfinite import run
from benchmarks.nonfinite.fault import Fault, trained
from benchmarks.nonfinite.holdings import holdings
from benchmarks.nonfinite.isolated import isolated
from benchmarks.nonfinite.sets import BENIGN, FAULTS, FROZEN
from benchmarks.nonfinite.steps import STEPS
from benchmarks.nonfinite.tables import render
from benchmarks.nonfinite.ways import Answer, by_anomaly
from benchmarks.nonfinite.worker import ask, judge
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def state(value, seen=None):
    """Every tensor that a step holds: in its closure, its functions', modules, optimizers, containers; and their gradients."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        yield from [value.grad] if value.is_leaf and value.grad is not None else []
        return
    inside = []
    if isinstance(value, nn.Module):
        inside = [*value.parameters(), *value.buffers()]
    elif isinstance(value, torch.optim.Optimizer):
        inside = [p for group in value.param_groups for p in group["params"]]
    elif isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, (list, tuple)):
        inside = list(value)
    elif callable(value):
        inside = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    for part in inside:
        yield from state(part, seen)


def finite(value):
    if isinstance(value, Tensor):
        value = value.detach()
        value = value.coalesce().values() if value.is_sparse else value
        return bool(value.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)


def spoils(program, times=1):
    """Whether a step, run so often, raises, returns something non-finite, or makes what it holds non-finite."""
    step = program.step()
    before = {id(t) for t in state(step) if not finite(t)}
    try:
        returned = [step() for _ in range(times)]
    except Exception:  # a program that NaN stops
        return True
    left = [t for t in state(step) if id(t) not in before]
    return not all(map(finite, tree_leaves(returned))) or not all(map(finite, left))


@pytest.mark.filterwarnings("ignore")
def test_faults_spoil_something(sweep):
    assert [f.name for f in sweep(list(FAULTS.values()), 25) if not spoils(f)] == []


@pytest.mark.filterwarnings("ignore")
def test_harmless_programs_spoil_nothing(sweep):
    assert [program.name for program in sweep(list(BENIGN.values()), 25) if spoils(program, times=4)] == []


def test_each_fault_has_one_cause():
    for fault in FAULTS.values():
        with open(fault.file) as file:
            line = file.readlines()[fault.lines[0] - 1]
        assert line.rstrip().endswith("# FAULT"), fault.name
        assert fault.about and fault.op and set(fault.phases) <= {"data", "forward", "backward", "double backward", "optimizer"}
    assert len(FAULTS) >= 100 and len(BENIGN) >= 60
    assert len(FROZEN & FAULTS.keys()) >= len(FAULTS) / 3 and len(FROZEN & BENIGN.keys()) >= len(BENIGN) / 3


def test_steps_are_the_same_at_each_call():
    for name in ("softmax_by_hand", "variational_deviation"):
        first, second = (list(state(FAULTS[name].step())) for _ in range(2))
        assert len(first) == len(second) > 1
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def planted():
    x = nn.Parameter(torch.tensor([1.0, 0.0]))

    def loss():
        y = (x * x).sqrt()  # FAULT
        z = y + 1
        return z.sum()  # ALSO

    return trained(loss, [x])


FAULT = Fault("planted", "for this test", planted, ("backward",), "sqrt")


def test_lines_are_those_of_the_marks():
    first = planted.__code__.co_firstlineno
    assert FAULT.lines == (first + 4, first + 6)


def test_judged_by_the_line():
    best, fair = FAULT.lines
    elsewhere = Answer(True, ((FAULT.file, best + 1), (os.__file__, best)), "backward", "aten.sqrt")
    assert judge(FAULT, Answer(False))["status"] == "silent"
    assert judge(FAULT, elsewhere) == {"status": "wrong", "expected": [best, fair]}
    right = judge(FAULT, Answer(True, ((FAULT.file, best),), "backward", "SqrtBackward0"))
    assert right == {"status": "right", "best": True, "phase_right": True, "op_right": True}
    also = judge(FAULT, Answer(True, ((FAULT.file, fair),), "forward", "aten.sum"))
    assert also == {"status": "right", "best": False, "phase_right": False, "op_right": False}


def test_anomaly_mode_is_heard_out():
    """It names the forward line of the op whose backward gave NaN: 0 / 0 is in the multiplication, on the same line."""
    found = by_anomaly(FAULT.step())
    assert found.found and found.op == "MulBackward0" and (FAULT.file, FAULT.lines[0]) in found.places
    assert not by_anomaly(lambda: None).found


def test_what_runs_apart_may_fail_in_any_way():
    assert isolated(lambda: {"status": "ok", "text": "a" * 10**6}, 20.0)["text"] == "a" * 10**6
    assert "ValueError: invalid literal" in isolated(lambda: {"status": int("x")}, 20.0)["reason"]
    assert isolated(lambda: os.kill(os.getpid(), signal.SIGKILL), 20.0)["reason"] == "its process ended with -9"
    assert isolated(lambda: time.sleep(30), 0.3)["reason"] == "not done within 0 s"


def test_a_run_end_to_end(tmp_path, capsys):
    result = tmp_path / "result.json"
    run.main(["--ways", "anomaly", "--tables", "faults", "--names", "slope_of_root,nan_label", "--result", str(result)])
    (faults,) = json.loads(result.read_text())["tables"]
    assert {r["quantity"]: r["status"] for r in faults["results"]} == {"slope_of_root": "silent", "nan_label": "right"}
    assert "| all | 2 | 1 (50 %) |" in capsys.readouterr().out


def test_harmless_programs_are_asked_about():
    assert ask("causal_mask", "anomaly")["status"] == "silent"
    assert ask("hook_that_cleans", "anomaly")["status"] == "alarm"


def test_holdings_are_what_the_author_would_list():
    held = holdings(FAULTS["schedule_begins_at_infinity"].step())
    assert [type(part).__name__ for part in (*held.modules, *held.optimizers, *held.stateful)] == ["Linear", "SGD", "LambdaLR"]
    loose = holdings(FAULTS["slope_of_root"].step())
    assert [p.shape for p in loose.modules[0].parameters()] == [(3,)] and len(loose.optimizers) == 1


@pytest.mark.parametrize("name", STEPS)
def test_timed_steps_train(name):
    step = STEPS[name]()
    first = step().item()
    for _ in range(3):
        last = step().item()
    assert math.isfinite(first) and last < first


def test_table_of_costs():
    common = {"status": "ok", "gradient_seconds": 0.02, "ratio_quartiles": [1.0, 1.1]}
    results = [
        {"quantity": "mlp", "library": "hesse", "ratio": 1.05, **common},
        {"quantity": "mlp", "library": "anomaly", "ratio": 1.5, **common, "ratio_quartiles": [1.0, 2.0]},
        {"quantity": "cnn", "library": "hesse", "status": "failed", "reason": "no"},
        {"quantity": "cnn", "library": "anomaly", "ratio": 2.0, **common},
    ]
    machine = {"processor": "p", "cores": 2, "system": "s", "python": "3", "load": 0.0}
    table = {"model": "costs", "quantities": ["mlp", "cnn"], "results": results}
    shown = render({"date": "d", "torch": "t", "machine": machine, "tables": [table]})
    assert "| MLP, 256 samples | 20.0 | 1.05 | ~1.50 |" in shown
    assert "| CNN, 32 images | 20.0 | fails | 2.00 |" in shown
