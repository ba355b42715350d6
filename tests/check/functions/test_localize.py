"""The element, the leaf and the pattern of an error are named, within the budget of the level."""

from __future__ import annotations

import pytest
import torch

from hesse.check import check_derivatives

from ..planted import draw, planted


@pytest.mark.parametrize("shape", [(30, 40), (2000,), (7, 11, 13)])
@pytest.mark.parametrize("level", ["quick", "full"])
def test_one_element_among_thousands_is_found_by_bisection(shape: tuple[int, ...], level) -> None:
    x = draw(*shape)
    place = tuple(length // 3 for length in shape)

    def rule(g, x):
        factor = torch.ones_like(x)
        factor[place] = 1.1
        return g * x.cos() * factor

    report = check_derivatives(planted(torch.sin, rule), x, level=level)
    (finding, *_) = [f for f in report.findings if f.check == "reverse mode"]
    assert finding.index == place and "1 of" in finding.diagnosis and "1.100" in finding.diagnosis
    assert abs(finding.value / finding.expected - 1.1) < 1e-3
    assert report.evaluations <= (60 if level == "quick" else 1000)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda g, x: 1.5 * g * x.cos(), "factor 1.500"),
        (lambda g, x: -g * x.cos(), "wrong sign"),
        (lambda g, x: 0 * g, "zero: missing"),
        (lambda g, x: (g * x.cos()).T.reshape(x.shape), "transposed"),
        (lambda g, x: (g * x.cos()).flip(1), "wrong order"),
        (lambda g, x: (g * x.cos()).roll(1, 0), "shifted by one"),
    ],
)
def test_patterns_of_large_leaves_are_found_without_looking_at_each_element(rule, words: str) -> None:
    report = check_derivatives(planted(torch.sin, rule), draw(20, 30))
    assert any(words in f.diagnosis for f in report.findings if f.check == "reverse mode"), str(report)


def test_the_leaf_is_named_among_many() -> None:
    wrong = planted(torch.sin, lambda g, x: 1.01 * g * x.cos())
    tree = {f"p{i}": draw(3 + i, seed=i) for i in range(12)}

    def f(t):
        return sum((wrong(v) if name == "p7" else v.sin()).sum() for name, v in t.items())

    report = check_derivatives(f, tree)
    assert {finding.leaf for finding in report.findings if finding.check == "reverse mode"} == {"p7"}, str(report)


def test_a_small_relative_error_of_a_tiny_gradient_beside_a_large_one() -> None:
    weak = planted(lambda x: 1e-6 * x.sin(), lambda g, x: 1.01e-6 * g * x.cos())
    report = check_derivatives(lambda t: t[0].exp() + weak(t[1]), (draw(3), draw(3, seed=1)))
    assert report.verdict == "wrong" and {f.leaf for f in report.findings} == {"1"}, str(report)


def test_a_leaf_that_is_right_is_not_called_wrong_beside_one_that_is_not() -> None:
    def f(t: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        a, b = t
        return (a.sin() * (2 * b - b.detach())).sum()

    point = (torch.linspace(0.3, 1.0, 4, dtype=torch.float64), torch.linspace(0.5, 2.0, 4, dtype=torch.float64))
    for level in ("quick", "full"):
        report = check_derivatives(f, point, level=level)
        rows = {row.leaf: row.verdict for row in report.compared if row.check == "reverse mode"}
        assert rows["1"] == "wrong"
        assert rows.get("0", "ok") == "ok"
