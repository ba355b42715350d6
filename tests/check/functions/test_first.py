"""What only a first call writes to its inputs."""

from __future__ import annotations

import pytest
import torch

from hesse.check import check_derivatives

from ..planted import draw

_CHECK = "inputs unchanged by the first call"


def shifted(x):
    x.data.sub_(x.data.amax(-1, keepdim=True))
    return torch.softmax(x, -1)


def rectified(x):
    x.data.clamp_(min=0)
    return torch.relu(x).square()


@pytest.mark.parametrize("f", [shifted, rectified])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_writes_that_a_second_call_does_not_repeat(f, dtype) -> None:
    x = draw(4, 3, dtype=dtype)
    kept = x.clone()
    assert _CHECK in {finding.check for finding in check_derivatives(f, x).findings}
    assert torch.equal(x, kept)


def test_indices() -> None:
    report = check_derivatives(lambda t: t[0][t[1].data.clamp_(max=4)].exp(), (draw(6, 2), torch.tensor([5, 0, 2])))
    assert [(f.check, f.leaf) for f in report.findings] == [(_CHECK, "1")]


def test_a_table_that_is_cut_as_it_is_asked_to_be() -> None:
    def f(t):
        return torch.nn.functional.embedding(t[1], t[0], max_norm=1.0)

    report = check_derivatives(f, (3 * draw(6, 2), torch.tensor([5, 0, 2])))
    assert not report.findings, report
    assert any("renormalizes '0' in place" in note for note in report.notes)


def test_writes_that_every_call_repeats_are_no_clock() -> None:
    def f(t):
        t["x"].data.add_(1)
        return t["x"].sin()

    (finding,) = check_derivatives(f, {"x": draw(3)}).findings
    assert finding.check == "same value twice"
    assert "writes to 'x'" in finding.diagnosis and "clock" not in finding.diagnosis
