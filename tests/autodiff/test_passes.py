"""Single passes of autograd: what is not reached gives zeros."""

from __future__ import annotations

import torch

from hesse.autodiff.passes import backward_pass, forward_pass


def test_backward_passes() -> None:
    x, unused = torch.tensor([1.0, 2.0], requires_grad=True), torch.ones(3, requires_grad=True)
    outputs, u = [x**2, x * 3, torch.ones(2)], torch.tensor([1.0, -1.0])
    for _ in range(2):  # the graph stays
        gx, gu = backward_pass(outputs, [x, unused], [u, None, u])
        assert gx.tolist() == [2.0, -4.0] and gu.tolist() == [0.0, 0.0, 0.0] and not gx.requires_grad
    assert backward_pass(outputs, [x], [u, u, u], differentiable=True)[0].requires_grad
    assert backward_pass(outputs[2:], [x], [u])[0].tolist() == [0.0, 0.0]


def test_forward_passes() -> None:
    x, v = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 10.0])
    tangents = forward_pass(lambda leaves: [leaves[0] ** 2, torch.ones(2)], [x], [v])
    assert [t.tolist() for t in tangents] == [[2.0, 40.0], [0.0, 0.0]]
