"""The benchmark of sparse derivatives: problems, references, requests, tables."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from benchmarks.sparse import reference, run, worker
from benchmarks.sparse.aims import Aim, aims
from benchmarks.sparse.cases import CASES, Case, point, side
from benchmarks.sparse.found import Found
from benchmarks.sparse.problems_torch import PROBLEMS
from benchmarks.sparse.process import Process
from benchmarks.sparse.tables import duration, factor, render
from benchmarks.sparse.ways import MODULES, STAGED, way
from benchmarks.sparse.ways_dense import fastest_chunk

SIZES = {"brusselator_2d": 32, "energy": 16, "volatility": 12, "mlp": 24, "blocks": 16} | dict.fromkeys(
    ("burgers", "brusselator_1d", "band", "random"), 14
)
REQUEST = {"repeats": 2, "seconds": 0.01, "patience": 20.0}
TORCH_WAYS = [name for name, module in MODULES.items() if module != "ways_jax" and name != "native"]


def exact(name, n):
    """The derivative, a row at a time."""
    x = torch.from_numpy(point(name, n)).requires_grad_()
    value = PROBLEMS[name](n)(x)
    rows = value if CASES[name].of == "jacobian" else torch.autograd.grad(value, x, create_graph=True)[0]
    return value.detach(), torch.stack([torch.autograd.grad(row, x, retain_graph=True)[0] for row in rows])


@pytest.mark.parametrize("name", CASES)
def test_references_are_products_with_the_derivative(name, tmp_path):
    n = SIZES[name]
    reference.write(str(tmp_path), name, n)
    found = reference.read(str(tmp_path), name, n)
    value, matrix = exact(name, n)
    np.testing.assert_allclose(found.value, value.numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.right, matrix.numpy() @ found.v, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.left, matrix.numpy().T @ found.u, rtol=1e-10, atol=1e-10)
    assert found.error(found.value, found.right, found.left) == 0
    assert found.error(found.value, found.right * 1.01, found.left) > reference.TOLERANCE
    assert found.error(found.value, found.right, found.left * np.nan) == float("inf")
    assert found.error(found.value, found.right[1:], found.left) == float("inf")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("which", TORCH_WAYS)
def test_every_way_computes_the_derivative(name, which):
    n = SIZES[name]
    chosen, x = way(which), torch.from_numpy(point(name, n))
    value, matrix = chosen.finish(chosen.evaluator(CASES[name], chosen.problems[name](n), x)(x))
    dense = matrix.to_dense() if matrix.layout != torch.strided else matrix
    expected_value, expected = exact(name, n)
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dense, expected, rtol=1e-9, atol=1e-9)
    v, u = np.random.default_rng(0).standard_normal(n), np.random.default_rng(1).standard_normal(len(dense))
    right, left = chosen.products(matrix, v, u)
    np.testing.assert_allclose(right, expected.numpy() @ v, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(left, expected.numpy().T @ u, rtol=1e-9, atol=1e-9)


def test_sizes_fit_grids_and_blocks():
    for name, case in CASES.items():
        for n in case.sizes:
            if name in ("brusselator_2d", "energy"):
                assert side(name, n) ** 2 * (2 if name == "brusselator_2d" else 1) == n
        assert len(point(name, case.sizes[0])) == case.sizes[0]
        assert {*case.dense, *case.compiled} <= set(case.sizes) and (not case.whole or case.whole in case.sizes)


def test_the_twins_have_the_same_problems():
    """JAX is in another environment, so the text says it; `reference` compares the values in every run."""
    source = (run.ROOT / "benchmarks" / "sparse" / "problems_jax.py").read_text()
    assert all(f"\ndef {name}(n: int)" in source for name in PROBLEMS)
    assert list(PROBLEMS) == list(CASES)


def test_stages_of_a_worker(tmp_path):
    reference.write(str(tmp_path), "burgers", 14)
    working = worker.Worker({"way": "hesse", "case": "burgers"})
    asked = REQUEST | {"n": 14, "folder": str(tmp_path)}
    for what in ("function", "detect", "color", "first", "prepared", "whole"):
        answer = worker.answer(working, asked | {"do": what})
        assert answer["status"] == "ok" and answer["seconds"] > 0, (what, answer)
    colored = worker.answer(working, asked | {"do": "color"})
    assert (colored["colors"], colored["entries"], colored["bound"]) == (3, 40, 3)
    assert worker.answer(working, asked | {"do": "whole"})["peak"] > 10**7
    assert worker.answer(working, asked | {"do": "first", "n": 15})["status"] == "failed"


def test_what_is_wrong_is_not_ok(tmp_path):
    reference.write(str(tmp_path), "burgers", 14)
    stored = dict(np.load(reference.path_of(str(tmp_path), "burgers", 14)))
    np.savez(reference.path_of(str(tmp_path), "burgers", 14), **(stored | {"left": stored["left"] + 1}))
    asked = REQUEST | {"n": 14, "folder": str(tmp_path)}
    for which, what in (("hesse", "first"), ("hesse", "prepared"), ("reverse", "dense")):
        working = worker.Worker({"way": which, "case": "burgers"})
        if what == "prepared":
            worker.answer(working, asked | {"do": "first"})
        answer = worker.answer(working, asked | {"do": what})
        assert answer["status"] == "wrong" and answer["error"] > 1e-6


def test_what_takes_too_long_is_stopped(tmp_path):
    working = worker.Worker({"way": "hesse", "case": "burgers"})
    answer = worker.answer(working, REQUEST | {"do": "detect", "n": 14, "patience": 1e-4})
    assert answer == {"status": "slow", "reason": "more than 0 s"}


def test_the_chunk_is_the_one_with_the_least_time_a_product(monkeypatch):
    now = [0.0]

    def product(v):
        now[0] += 1.0  # one call of the vectorized function, however many products
        return v

    monkeypatch.setattr("benchmarks.sparse.ways_dense.time.perf_counter", lambda: now[0])
    assert fastest_chunk(product, torch.zeros(100)) == 100
    assert fastest_chunk(product, torch.zeros(5_000)) == 4096


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot bind processes to cores")
def test_a_process_keeps_to_its_cores():
    code = "import os; from benchmarks.sparse.worker import keep_to; keep_to(1); print(len(os.sched_getaffinity(0)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=run.ROOT, text=True).strip() == "1"


def test_a_worker_that_dies_is_started_again(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(
        'import sys, json\nprint(\'{"status": "ready"}\', flush=True)\n'
        "for line in sys.stdin:\n"
        "    if json.loads(line)['n'] == 1: sys.exit('gone')\n"
        '    print(\'{"status": "ok"}\', flush=True)\n'
    )
    process = Process(sys.executable, {"threads": 1})
    process._command = [sys.executable, str(script)]
    asked = {"patience": 20.0}
    assert process.ask(asked | {"n": 0}) == {"status": "ok"}
    dead = process.ask(asked | {"n": 1})
    assert dead["status"] == "failed" and "gone" in dead["reason"]
    assert process.ask(asked | {"n": 0}) == {"status": "ok"}
    process.close()


def test_the_runner_end_to_end():
    (report,) = run.measure(run._parse(["--quick", "--cases", "burgers", "--ways", "hesse,reverse", "--threads", "1"]))
    found = Found(report["results"])
    assert found.keys == [("burgers", 1_000)] and found.reasons() == []
    assert found.ratio(("burgers", 1_000), ("reverse", "dense"), ("hesse", "prepared")) > 1
    text = render(report)
    assert "### Detection" in text and "| Burgers | 1,000 |" in text and "### Aims" not in text
    assert json.dumps(report)


def result(case, n, way, what, seconds, **more):
    return {"case": case, "n": n, "way": way, "what": what, "status": "ok", "seconds": seconds, **more}


def test_tables_show_ratios_failures_and_aims():
    results = [
        result("burgers", 10_000, "hesse", "first", 0.1), result("burgers", 10_000, "reverse", "dense", 20.0),
        result("burgers", 10_000, "hesse", "prepared", 0.01, least=0.005, most=0.02),
        result("burgers", 10_000, "asdex", "prepared", 4e-4),
        {"case": "burgers", "n": 10_000, "way": "asdex", "what": "detect", "status": "slow", "reason": "more than 90 s"},
        {"case": "burgers", "n": 10_000, "way": "native", "what": "prepared", "status": "wrong", "error": 0.1},
        result("burgers", 1_000_000, "hesse", "whole", 4.0, before=2**30, peak=3 * 2**30),
    ]  # fmt: skip
    machine = {"processor": "p", "cores": 2, "system": "s", "python": "3", "load": 0.0}
    about = {"date": "today", "mode": "full", "threads": 2, "torch": "2", "asdex": "asdex==0", "machine": machine}
    text = render(about | {"results": results})
    assert "| Burgers | 10,000 | - | more than 90 s | - |" in text
    assert "| Burgers | 10,000 | - | ~10.0 ms | wrong | 400 µs | - | 25.0 | - |" in text
    assert "| Burgers, 10,000: jacrev / first call | at least 100x | 200x | reached |" in text
    assert "| Burgers, 10,000: jacrev / prepared | at least 4,000x | 2,000x | missed |" in text
    assert "| Burgers | 1,000,000 | hesse | 4.00 s | 1.00 GiB | 3.00 GiB |" in text
    assert "| Burgers, 1,000,000: peak memory of the process | at most 4 GiB | 3 GiB | reached |" in text
    assert "- burgers 10,000, native, prepared: relative error 0.1" in text


def test_aims_name_what_is_measured():
    for aim in aims():
        assert aim.value(Found([])) is None
    assert len({aim.title for aim in aims()}) == len(aims())
    assert not Aim("", 2, False, lambda _: 0).reached(3) and Aim("", 2, True, lambda _: 0).reached(3)


def test_figures_have_three_digits():
    assert [duration(s) for s in (12.345, 0.0123, 1.5e-5)] == ["12.3 s", "12.3 ms", "15.0 µs"]
    assert [factor(x) for x in (12345.6, 3.14159)] == ["12,346", "3.14"]


def test_choices(capsys):
    everything = run._parse([])
    assert everything.cases == list(CASES) and everything.ways == list(MODULES) and set(STAGED) <= set(MODULES)
    quick = run._parse(["--quick"])
    assert "native" not in quick.ways and quick.largest == 2_100
    with pytest.raises(SystemExit):
        run._parse(["--cases", "navier"])
    assert "navier is not among" in capsys.readouterr().err


def test_who_takes_part():
    case = Case("", "jacobian", (10, 500_000), dense=(10,), compiled=(10,))
    assert run.offered("band", case, "native", "first", 10) and not run.offered("band", case, "native", "first", 500_000)
    assert run.offered("band", case, "reverse", "dense", 10) and not run.offered("band", case, "jax", "dense", 500_000)
    assert not run.offered("band", case, "asdex", "detect", 500_000)
    assert run.offered("burgers", case, "asdex", "detect", 500_000) and run.offered("band", case, "hesse", "first", 500_000)


def test_the_page_has_its_markers():
    text = run.PAGE.read_text()
    assert text.count("<!-- table: begin -->") == 1 == text.count("<!-- table: end -->")
