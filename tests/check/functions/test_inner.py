"""Backward passes that take their cotangent for a packed array, inside a graph and at its end."""

from __future__ import annotations

import pytest
import torch

from hesse.check import check_derivatives

from ..planted import draw, planted


def packed(g):
    """What a kernel sees that reads from the pointer on and knows the shape only."""
    try:
        return torch.as_strided(g, g.shape, torch.empty(g.shape).stride())
    except RuntimeError:  # beyond the storage
        return g


def from_start(g):
    try:
        return torch.as_strided(g, g.shape, torch.empty(g.shape).stride(), 0)
    except RuntimeError:
        return g


WRONG = {
    "rows without gaps": (lambda g, x: (packed(g) if g.stride(-1) == 1 else g) * x.cos(), (4, 5), "sliced"),
    "inner axes without gaps": (
        lambda g, x: (packed(g) if g.stride(-1) == 1 and g.stride(-2) == g.shape[-1] else g) * x.cos(), (3, 4, 5), "sliced"),
    "one gap for all rows": (
        lambda g, x: (g.as_strided(g.shape, (g.stride(1) * g.shape[1], *g.stride()[1:])) if _fits(g) else g) * x.cos(),
        (3, 4, 5), "sliced"),
    "no offset": (lambda g, x: (from_start(g) if g.is_contiguous() else g) * x.cos(), (4, 5), "offset"),
    "any": (lambda g, x: (packed(g) if not g.is_contiguous() else g) * x.cos(), (4, 5), "transposed"),
}  # fmt: skip


def _fits(g):
    return g.stride(-1) == 1 and g.storage_offset() + g.stride(1) * g.shape[1] * g.shape[0] <= g.untyped_storage().nbytes() // 8


@pytest.mark.parametrize(("rule", "shape", "kind"), WRONG.values(), ids=WRONG)
def test_strides_of_cotangents(rule, shape, kind) -> None:
    last, inside = planted(torch.sin, rule), planted(torch.sin, rule)
    found = {f.check for f in check_derivatives(last, draw(*shape)).findings}
    assert any(check.startswith(kind) and check.endswith(" cotangent") for check in found), found
    found = {f.check for f in check_derivatives(lambda x: torch.tanh(inside(x.exp())), draw(*shape)).findings}
    assert any(check.startswith(kind) and check.endswith(" cotangent inside") for check in found), found


def test_a_number_in_the_middle_of_a_vector() -> None:
    wrong = planted(lambda x: (x * x).sum(), lambda g, x: 2 * torch.as_strided(g, (), (), 0) * x)
    assert "sliced cotangent" in {f.check for f in check_derivatives(wrong, draw(3, 2)).findings}


def test_a_sum_over_the_whole_storage() -> None:
    def rule(g, x):
        return torch.empty(0, dtype=g.dtype).set_(g.untyped_storage()).sum() * torch.ones_like(x)

    report = check_derivatives(planted(lambda x: x.expand(4, 5).clone(), rule), draw(1)[0])
    assert {"strided cotangent", "sliced cotangent"} <= {f.check for f in report.findings}


def test_conjugated_on_reading() -> None:
    def rule(g, x):
        return 2 * (torch.conj_physical(g) if g.is_conj() else g)

    x = torch.complex(draw(3, 2), draw(3, 2, seed=1))
    assert "lazily conjugated cotangent" in {f.check for f in check_derivatives(planted(lambda x: 2 * x, rule), x).findings}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_right_ones_pass(dtype) -> None:
    right = planted(torch.sin, lambda g, x: g * x.cos())
    assert check_derivatives(lambda x: torch.tanh(right(x.exp())).sum(0), draw(4, 3, dtype=dtype)).ok
    assert check_derivatives(lambda x: torch.cat([right(x), x], 1), draw(2, 3, 4, dtype=dtype)).ok
