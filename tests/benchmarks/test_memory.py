"""The benchmark of the memory budget: what its page says of results that differ, and blocks put together."""

import pytest
import torch
from benchmarks.memory.cases import CASES, _images
from benchmarks.memory.tables import SAME, others, render

import hesse


def report(*differences: float, status: str = "done"):
    machine = {"processor": "Some CPU", "cores": 2, "system": "Linux"}
    free = {"status": "done", "growth": 2**26, "seconds": 1.0}
    results = [
        {"name": f"case {k}", "free": free, "budgets": [
            {"budget": 2**25, "status": status, "growth": 2**24, "seconds": 2.0, "difference": 1e-9, "least": 2**27},
            {"budget": 2**24, "status": status, "growth": 2**24, "seconds": 2.0, "difference": d, "least": 2**27},
        ]}
        for k, d in enumerate(differences)
    ]  # fmt: skip
    return {"date": "2026-01-02 03:04 UTC", "machine": machine, "parts": [2, 4], "results": results}


def test_the_largest_difference_is_named():
    text = render(report(1e-7, SAME / 2))
    assert text.splitlines()[-1] == "The largest relative difference from a result without a budget: 5.0e-05 (case 1)."
    assert "| case 0 | 64 MiB | 0.50 (2.0x time) | 1.00 (2.0x time) |  |" in text
    assert not others(report(1e-7, SAME))


@pytest.mark.parametrize("wrong", [2 * SAME, 5.0, float("nan"), float("inf")])
def test_results_that_differ_are_all_named(wrong):
    assert list(others(report(1e-7, wrong, wrong))) == ["case 1", "case 2"]
    assert render(report(1e-7, wrong)).splitlines()[-1].startswith("Results differ by more than 1e-04: case 1 (")


def test_what_was_refused_is_no_difference():
    refused = report(5.0, status="refused")
    assert not others(refused)
    assert "Nothing was computed" in render(refused)


def test_blocks_of_a_kernel_make_the_product_of_the_whole():
    found, whole = CASES["ntk_blocks"](12)(), CASES["ntk_wide"](12)()
    v = torch.randn(8, 48, generator=torch.Generator().manual_seed(2))
    expected = torch.einsum("ncmd,md->nc", whole, v)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_moments_are_compared_by_what_their_factors_make():
    found = CASES["rows_moments"](64)()
    model, loss, batch = _images(64)
    for name, moments in hesse.parameter_jacobian(model, loss, batch).select(params=["0.weight", "6.bias"]).moments().items():
        left, right = (torch.diag_embed(side) if side.ndim == 2 else side for side in found[name])
        assert float(right.norm()) == pytest.approx(1, rel=1e-5)
        torch.testing.assert_close(torch.kron(left[0], right[0]), moments.dense(), rtol=1e-4, atol=1e-7)
