"""The benchmarks of this folder's subjects: they say what they need, and their tables hold what was measured."""

from __future__ import annotations

import pytest
import torch
from benchmarks.compiled import run
from benchmarks.compiled import table as compiled
from benchmarks.gpu import run as gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 1
    assert "needs a GPU" in capsys.readouterr().err


def test_results_are_compared_before_they_are_timed() -> None:
    found = gpu.measure("mlp", ["norms"], "cpu")
    assert found["norms"]["seconds"] > 0
    problem = gpu.make_problem("mlp")
    wrong = gpu.quantity_of(problem, "norms", {"": torch.ones(len(problem.inputs), dtype=torch.float64)}, "cpu")
    assert "wrong" in wrong["failed"]


def test_the_table_of_a_gpu() -> None:
    results: dict[str, object] = {"gradient": {"seconds": 2e-3, "memory": 2**20}, "gram": {"failed": "no"}}
    results["norms"] = {"seconds": 5e-3, "memory": 3 * 2**20}
    text = gpu.render({"date": "today", "device": "GPU", "torch": "2", "models": {"mlp": results}})
    assert "| per-sample gradient norms | 2.50 | 3 MiB |" in text
    assert "| Gram matrix of the per-sample gradients | no | - |" in text


def test_products_until_it_pays() -> None:
    result = {"direct": 3e-3, "replay": 1e-3, "replay_seconds": 0.02, "native": 2.99e-3, "native_seconds": 5.0}
    assert compiled.pays(result, "replay") == "10"
    assert compiled.pays(result, "native") == "never"
    assert compiled.pays({**result, "native": 1e-3}, "native") == "2,500"


def test_the_table_of_per_sample_quantities() -> None:
    ours = {"gradient": 1e-3, "direct": 4e-3, "replay": 2e-3, "native": 1e-3, "sum": 7.0}
    ours |= {"replay_seconds": 0.2, "native_seconds": 3.0}
    peer = {"vmap": 5e-3, "vmap_seconds": 0.1, "compiled_vmap_fails": "RuntimeError: no compiler", "sum": 7.001}
    joined = run.joined({"norms": dict(ours)}, {"norms": peer})
    machine = {"processor": "a processor", "cores": 2, "python": "3", "load": 0.5}
    text = compiled.render({"rows": {"date": "today", "torch": "2", "machine": machine, "cases": {"MLP": joined}}})
    assert "| MLP | norms | 1000 µs | 4.00 | 2.00 | 1.00 | 5.00 | fails | 200 ms | 3.0 s | - | 100 | 1,000 |" in text
    assert "RuntimeError: no compiler" in text
    with pytest.raises(RuntimeError, match="norms"):
        run.joined({"norms": dict(ours)}, {"norms": {**peer, "sum": 8.0}})
