"""The runner end to end on the cheapest of its quantities, and with workers that misbehave."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import run

FAST = ["--quick", "--models", "functions", "--libraries", "torch_func", "--threads", "1"]


def test_one_library_on_the_small_functions():
    report = run.measure(run._parse(FAST))
    assert [(r["library"], r["quantity"], r["status"]) for r in report["results"]] == [
        ("torch_func", "jacobian", "ok"),
        ("torch_func", "hessian", "ok"),
    ]
    assert all(r["error"] < 1e-5 and r["ratio"] > 0 and r["rounds"] >= 3 for r in report["results"])
    assert report["import_time"] is None and "torch" in report["libraries"]["torch_func"]
    assert "Jacobian, R^100 to R^60" in run.render(json.loads(json.dumps(report)))


def test_names_keep_their_own_order_and_unknown_ones_are_refused(capsys):
    args = run._parse(["--models", "lenet,mlp", "--quantities", "gram,norms"])
    assert args.models == ["mlp", "lenet"] and args.quantities == ["norms", "gram"]
    assert len(args.libraries) == 5
    with pytest.raises(SystemExit):
        run._parse(["--models", "mlp,resnet"])
    assert "resnet is not among mlp, lenet" in capsys.readouterr().err


def test_quick_leaves_out_what_is_slow_unless_named():
    quick = run._parse(["--quick"])
    assert {"3c3d", "resnet18"}.isdisjoint(quick.models) and "conv3d" in quick.models
    assert {"hvp_block", "kernel"}.isdisjoint(quick.quantities) and "hvp_kept" in quick.quantities
    assert run._parse(["--quick", "--models", "3c3d"]).models == ["3c3d"]


JOB = {"model": "mlp", "quantities": ["dense", "norms", "gram"], "threads": 1}


def scripted(monkeypatch, *scripts):
    """Each start of a worker runs the next of these Python programs instead."""
    left = list(scripts)

    def start(python, job, **streams):
        command = [sys.executable, "-c", "import os, json\n" + left.pop(0)]
        return run.subprocess.Popen(command, text=True, **streams)

    monkeypatch.setattr(run, "_start", start)
    return left


def say(**message):
    return f"print({json.dumps(json.dumps(message))}, flush=True)\n"


def test_a_crash_costs_one_quantity(monkeypatch):
    done = say(event="result", quantity="dense", status="ok")
    left = scripted(
        monkeypatch,
        say(event="library", version="1") + done + say(event="start", quantity="norms") + "os._exit(3)",
        say(event="result", quantity="gram", status="ok"),
    )
    about = {"python": sys.executable}
    found = {r["quantity"]: r for r in run.measure_library("opacus", about, JOB)}
    assert not left and about["version"] == "1"
    assert [found[q]["status"] for q in JOB["quantities"]] == ["ok", "failed", "ok"]
    assert "ended with 3" in found["norms"]["reason"]


def test_a_silent_worker_is_given_up(monkeypatch):
    monkeypatch.setattr(run, "SILENCE", 0.5)
    sleep = "import time; time.sleep(60)"
    scripted(monkeypatch, say(event="start", quantity="dense") + sleep, sleep, sleep)
    found = list(run.measure_library("opacus", {"python": sys.executable}, JOB))
    assert [r["quantity"] for r in found] == JOB["quantities"]
    assert all(r["status"] == "failed" and "nothing within" in r["reason"] for r in found)


def test_a_library_that_cannot_be_imported_is_asked_once(monkeypatch):
    left = scripted(monkeypatch, say(event="library", reason="cannot be imported: ImportError: x"))
    found = list(run.measure_library("opacus", {"python": sys.executable}, JOB))
    assert not left and [r["reason"] for r in found] == ["cannot be imported: ImportError: x"] * 3


def test_a_library_is_not_started_for_what_it_has_been_seen_not_to_offer(monkeypatch):
    absent = [say(event="result", quantity=quantity, status="absent") for quantity in ("dense", "gram")]
    about = {"python": sys.executable}
    scripted(monkeypatch, "".join(absent) + say(event="result", quantity="norms", status="ok"))
    assert len(list(run.measure_library("curvlinops", about, JOB))) == 3
    jobs = []

    def messages(python, job):
        jobs.append(list(job["quantities"]))
        return iter([{"event": "end", "reason": "done"}])

    monkeypatch.setattr(run, "_messages", messages)
    found = list(run.measure_library("curvlinops", about, JOB | {"quantities": ["dense", "gram"]}))
    assert not jobs and found == [{"quantity": q, "status": "absent"} for q in ("dense", "gram")]
    list(run.measure_library("curvlinops", about, JOB | {"quantities": ["dense", "norms"]}))
    assert jobs == [["norms"]]


def test_a_library_that_cannot_be_installed_is_never_started(monkeypatch):
    scripted(monkeypatch)
    found = list(run.measure_library("opacus", {"reason": "cannot be installed: no network"}, JOB))
    assert {r["status"] for r in found} == {"failed"}


def test_the_page_has_its_markers():
    text = Path(run.PAGE).read_text()
    assert text.count(run.render.__globals__["BEGIN"]) == 1
