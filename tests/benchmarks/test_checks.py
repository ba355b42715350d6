"""The runner of the planted bugs: outcomes, counts, tables, and the adapters for the checkers of other libraries."""

import ctypes
import faulthandler
import json
import time

import numpy as np
import pytest
import torch
from benchmarks.checks import run, sets, tables, times, worker
from benchmarks.checks.adapter import Primitive
from benchmarks.checks.bug import Program
from benchmarks.checks.planting import custom, draw
from benchmarks.checks.ways import TITLES, WAYS, CannotRun, complaint, leaves_of
from torch import nn

SQUARE = [sets.Case("open", "square_half", "float64", planted) for planted in (True, False)]


@pytest.mark.parametrize("way", ["gradcheck", "gradcheck_fast", "gradcheck_batched", "gradgradcheck"])
def test_gradcheck_tells_a_planted_bug_from_its_twin(way):
    planted, sound = (complaint(way, case.program()) for case in SQUARE)
    assert "mismatch" in planted and sound is None


def test_every_checker_has_a_title():
    assert list(TITLES) == list(WAYS)


def test_parameters_of_a_module_follow_its_inputs():
    layer = nn.Linear(3, 2)
    f, leaves = leaves_of(Program(layer, (torch.ones(1, 3),)))
    torch.testing.assert_close(f(leaves[0], 2 * leaves[1], leaves[2]), layer.weight.sum(1)[None] * 2 + layer.bias)
    assert [t.shape for t in leaves] == [(1, 3), (2, 3), (2,)] and not any(t is p for t in leaves for p in layer.parameters())


def ended(monkeypatch, behavior, limit=20.0):
    monkeypatch.setattr(worker, "complaint", behavior)
    return worker.outcome("gradcheck", SQUARE[0], limit)


def test_outcomes_of_one_case(monkeypatch):
    def refuses(way, program):
        raise ValueError("not this\nlong story")

    def aborts(way, program):
        faulthandler.disable()
        ctypes.CDLL(None).abort()

    def cannot(way, program):
        raise CannotRun("sparse arguments")

    assert ended(monkeypatch, lambda way, program: None)["status"] == "passed"
    assert ended(monkeypatch, lambda way, program: "wrong by 2")["reason"] == "wrong by 2"
    found = ended(monkeypatch, refuses)
    assert found["status"] == "complaint" and found["reason"].startswith("ValueError: not this (test_checks.py:")
    assert ended(monkeypatch, cannot)["status"] == "cannot run"
    assert ended(monkeypatch, aborts)["reason"] == "ended with -6"
    assert ended(monkeypatch, lambda way, program: time.sleep(30), 0.2)["status"] == "timeout"


def result(case, status, way="gradcheck", seconds=1.0):
    return {"library": way, "quantity": case, "status": status, "reason": "why", "seconds": seconds}


RESULTS = [
    result("open:square_half:float64:planted", "complaint"),
    result("open:square_half:float64:sound", "passed"),
    result("open:softmax_diagonal:float64:planted", "complaint"),
    result("open:softmax_diagonal:float64:sound", "complaint"),
    result("open:null_pointer:float64:planted", "crash"),
    result("open:null_pointer:float64:sound", "passed"),
    result("open:square_half:float64:planted", "passed", "hips"),
    result("open:square_half:float64:sound", "timeout", "hips"),
]
REPORT = {
    "date": "today", "torch": "2", "machine": {"processor": "p"}, "results": RESULTS, "times": {"small layer": 0.0421},
}  # fmt: skip


def test_findings_are_told_from_alarms():
    own = [r | {"case": sets.Case.parse(r["quantity"])} for r in RESULTS]
    c = tables.counts([r for r in own if r["library"] == "gradcheck"])
    assert (c["bugs"], c["twins"], c["found"], c["apart"], c["alarms"], c["crash"]) == (3, 3, 2, 1, 1, 1)
    c = tables.counts([r for r in own if r["library"] == "hips"])
    assert (c["bugs"], c["found"], c["apart"], c["alarms"], c["timeout"]) == (1, 0, 0, 0, 1)


def test_tables():
    text = tables.render(json.loads(json.dumps(REPORT)))
    assert "### Of the open set: 3 bugs of 3 kinds" in text
    assert "| gradcheck | 2 of 3 (67 %) | 1 of 3 (33 %) | 1 of 3 (33 %) | 1, 0 | 1 |" in text
    assert "| HIPS check_grads | 0 of 1 (0 %) | 0 of 1 (0 %) | 0 of 1 (0 %) | 0, 1 | 1 |" in text
    assert "| factor | 1 | 1 | 0 |" in text and "| missing term | 1 | 0 | 0 |" in text
    assert "| small layer | 0.0421 |" in text and "frozen" not in text


def test_what_is_missed_is_listed_by_name():
    text = tables.missed(REPORT, ["gradcheck"])
    assert "2 of 3 found, 1 of 3 twins alarm" in text
    assert "- missing term: open:softmax_diagonal:float64:sound: complaint why" in text
    assert "- crash: open:null_pointer:float64:planted: crash why" in text and "square_half" not in text


def test_the_runner_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "RESULT", tmp_path / "checks.json")
    flags = ["--sets", "open", "--dtypes", "float64", "--only", "square_half", "--no-times", "--ways"]
    run.main([*flags, "gradcheck"])
    assert "| gradcheck | 1 of 1 (100 %) | 0 of 1 (0 %) | 1 of 1 (100 %) | 0, 0 |" in capsys.readouterr().out
    run.main([*flags, "gradcheck_fast", "--reuse"])
    table = capsys.readouterr().out
    assert "| gradcheck, fast mode | 1 of 1" in table and "| gradcheck | 1 of 1" in table
    assert len(json.loads(run.RESULT.read_text())["results"]) == 4


def test_a_worker_that_dies_costs_one_case(monkeypatch):
    args = run._parse(["--only", "square_half", "--sets", "open", "--dtypes", "float64"])
    monkeypatch.setattr(run, "WORKER", "benchmarks.checks.bug")  # ends without a word
    found = run._measured("gradcheck", SQUARE, args)
    assert [r["status"] for r in found] == ["failed", "failed"]


def test_the_timed_network_is_lenet():
    net = times.lenet()
    assert sum(p.numel() for p in net.parameters()) == 61706 and net(times.images()).shape == (2, 10)


def test_the_page_has_its_markers():
    text = run.PAGE.read_text()
    assert text.count("<!-- table: begin -->") == 1 == text.count("<!-- table: end -->")


# --- adapters ---


def test_a_primitive_pulls_back_once_and_twice():
    """y = a^2 b: the gradients for the cotangent g, and those of  <p, 2 g a b> + <q, g a^2>."""
    a, b = draw(torch.float64, 3), draw(torch.float64, 3, seed=1)
    primitive = Primitive(Program(lambda a, b: a * a * b, (a, b)))
    g, p, q = (np.random.default_rng(k).normal(size=3) for k in range(3))
    a, b = a.numpy(), b.numpy()
    np.testing.assert_allclose(primitive.value(a, b), a * a * b, rtol=1e-14)
    for found, expected in zip(primitive.pull(a, b, g), (2 * g * a * b, g * a * a), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-14)
    expected = (2 * p * g * b + 2 * q * g * a, 2 * p * g * a, 2 * p * a * b + q * a * a)
    for found, slope in zip(primitive.pull_twice(a, b, g, p, q), expected, strict=True):
        np.testing.assert_allclose(found, slope, rtol=1e-13)


def test_a_primitive_of_complex_numbers_is_holomorphic_for_the_others():
    """The others' gradient of z^2 for the cotangent g is 2 z g, PyTorch's is 2 conj(z) g."""
    z = torch.complex(draw(torch.float64, 4), draw(torch.float64, 4, seed=1))
    primitive = Primitive(Program(custom(lambda z: z * z, lambda g, _, z: 2 * g * z.conj()), (z,)))
    g = np.random.default_rng(1).normal(size=4) + 1j * np.random.default_rng(2).normal(size=4)
    np.testing.assert_allclose(primitive.pull(z.numpy(), g)[0], 2 * z.numpy() * g, rtol=1e-13)


def test_a_primitive_joins_outputs_keeps_integers_and_refuses_sparse_tensors():
    primitive = Primitive(Program(lambda x, i: (x[i], x.sum()), (draw(torch.float32, 4), torch.tensor([1, 1]))))
    assert primitive.value(np.arange(4, dtype=np.float32)).tolist() == [1, 1, 6]
    assert primitive.pull(np.arange(4, dtype=np.float32), np.ones(3, np.float32))[0].tolist() == [1, 3, 1, 1]
    with pytest.raises(CannotRun):
        Primitive(Program(torch.sin, (torch.eye(2).to_sparse(),)))
