"""Derivatives by hand and by `hesse.grad` are equal to rounding all through training."""

from __future__ import annotations

import pytest
import torch


def test_they_are_equal_to_rounding(example, tmp_path) -> None:
    module, training = example("by_hand"), example("training")
    rnn, lstm = module.main(training.Options(tmp_path / "figure.png", epochs=1))
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert rnn.differences.keys() == {"dWhy", "dby", "dh", "dhraw", "dWxh", "dWhh", "dbh", "dhnext"}
    assert lstm.differences.keys() == {"dWhy", "dby", "dh", "dc", "da", "dWx", "dWh", "db", "dhnext", "dcnext"}
    for cell in (rnn, lstm):
        assert max(cell.differences.values()) < 1e-13, cell.name
        assert sum(cell.losses[-20:]) < 0.85 * sum(cell.losses[:20]) and len(cell.flow) == module.REACH
        assert cell.flow[-1] < 1e-2 * cell.flow[0], "gradients vanish"


def test_a_difference_is_seen(example) -> None:
    module = example("by_hand")
    value = torch.tensor([1.0, -4.0])
    assert module.differences({"dW": value}, {"dW": value + torch.tensor([0.2, 0.0])})["dW"] == pytest.approx(0.05)
    with pytest.raises(KeyError):
        module.differences({"dW": value}, {"db": value})
