"""Labels and signs from given uniform numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hesse.rules.losses.draws import draw_labels, signs
from tests.rules.losses.oracles import uniform_of

LAST = 1 - 2**-53  # the largest number below 1


def test_labels_are_the_inverse_of_the_cumulated_distribution() -> None:
    p = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    uniform = uniform_of(1)((5, 3))
    found = draw_labels(p, uniform)
    assert found.shape == (5, 1, 3)
    for i in range(5):
        for t in range(3):
            expected = np.searchsorted(np.cumsum(p[i, :, t].numpy()), float(uniform[i, t]), side="right")
            assert int(found[i, 0, t]) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits(dtype: torch.dtype) -> None:
    p = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]], dtype=dtype)
    limits = {0.0: 1, 0.2499: 1, 0.25: 3, 0.7499: 3, 0.75: 4, LAST: 4}
    for number, label in limits.items():
        assert int(draw_labels(p, torch.tensor([number], dtype=torch.float64))) == label
    for scale in (1 / 3, 1e-30, 3.0):
        assert int(draw_labels(p * scale, torch.tensor([LAST], dtype=torch.float64))) == 4
        assert int(draw_labels(p * scale, torch.tensor([0.0], dtype=torch.float64))) == 1


def test_a_certain_class_is_always_drawn() -> None:
    p = torch.eye(5)
    for number in (0.0, 0.5, LAST):
        assert torch.equal(draw_labels(p, torch.full((5,), number, dtype=torch.float64)).flatten(), torch.arange(5))


def test_fifty_thousand_classes_in_float32() -> None:
    classes, draws = 50_000, 200
    generator = torch.Generator().manual_seed(3)
    p = torch.randn(1, classes, generator=generator).mul_(3).softmax(1)
    p[:, ::3] = 0
    p[:, -100:] = 0
    exact = np.cumsum(p[0].double().numpy())
    p = p.expand(draws, classes)
    uniform = torch.rand(draws, generator=generator, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, LAST])
    found = draw_labels(p, uniform)[:, 0].numpy()
    expected = np.searchsorted(exact, uniform.numpy() * exact[-1], side="right")
    assert np.array_equal(found[2:], expected[2:])
    assert found[0] == 1 and found[1] == np.flatnonzero(p[0].numpy())[-1]
    assert bool((p[0][torch.from_numpy(found)] > 0).all())


def test_rare_classes_beside_a_frequent_one_are_drawn_in_float32() -> None:
    p = torch.full((1, 50_000), 1e-8)
    p[0, 0] = 1 - 5e-4
    exact = np.cumsum(p[0].double().numpy())
    uniform = 1 - 4.9e-4 * torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = draw_labels(p.expand(300, -1), uniform)[:, 0].numpy()
    assert np.array_equal(found, np.searchsorted(exact, uniform.numpy() * exact[-1], side="right"))
    assert len(set(found.tolist())) > 290


def test_sums_that_rounding_makes_uneven_draw_no_impossible_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the parallel sums of an accelerator may: not the same on both sides of a class of probability 0."""
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    uneven = torch.tensor([[1e-17, 0.25, 0.25 + 1e-16, 1.0, 1.0 + 1e-15]], dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, axis, dtype: uneven.clone())
    for number in (0.0, 0.25, LAST):
        assert int(draw_labels(p, torch.tensor([number], dtype=torch.float64))) in (1, 3)


def test_signs() -> None:
    like = torch.zeros(100, 3, dtype=torch.float64)
    assert torch.equal(signs(lambda shape: torch.full(tuple(shape), 0.5), like), torch.ones_like(like))
    found = signs(uniform_of(0), like)
    assert found.dtype == torch.float64 and set(found.flatten().tolist()) == {1.0, -1.0}
    assert abs(float(found.mean())) < 5 / 300**0.5
