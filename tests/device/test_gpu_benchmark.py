"""The benchmarks of this folder's subjects: they say what they need, and their tables hold what was measured."""

from __future__ import annotations

import pytest
import torch
from benchmarks.compiled import run as compiled
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
