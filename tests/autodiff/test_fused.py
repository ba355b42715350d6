"""Attention in every form has its second derivatives, and PyTorch's switches are put back."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesse.autodiff import hessian_operator, linearize
from hesse.autodiff.fused import differentiable_attention
from hesse.derivatives import hessian, jacobian

from .programs import REAL, ReverseOnlySquare, by_loops, differences, seeded


def switches() -> list[bool]:
    cuda = torch.backends.cuda
    return [
        torch.backends.mha.get_fastpath_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    ]


def attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x.sin(), x, is_causal=True)


def by_hand(x: Tensor) -> Tensor:
    scores = x @ x.sin().mT / x.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ x


def modules() -> list[nn.Module]:
    torch.manual_seed(0)
    options = {"batch_first": True, "dtype": REAL}
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, activation="gelu", **options)
    return [nn.MultiheadAttention(4, 2, **options), layer, nn.TransformerEncoder(layer, 1)]


def call(module: nn.Module) -> Callable[[Tensor], Tensor]:
    if isinstance(module, nn.MultiheadAttention):
        return lambda x: module(x, x, x, need_weights=False)[0]
    return module


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_modules_have_first_and_second_derivatives(kind: int, frozen: bool, train: bool) -> None:
    module = modules()[kind].train(train).requires_grad_(not frozen)
    f, x, before = call(module), seeded(1, 3, 4), switches()
    weight = seeded(1, 3, 4, seed=1)
    with torch.no_grad():
        J = differences(lambda t: module.train()(t) if kind else f(t), x, 3e-3)
        module.train(train)
        torch.testing.assert_close(jacobian(f, x).jacobian, J, rtol=1e-6, atol=1e-8)
        H = hessian(lambda t: (f(t) * weight).sum(), x).hessian
    slopes = differences(lambda t: by_loops(lambda s: (f(s) * weight).sum(), t), x, 3e-3)
    torch.testing.assert_close(H, slopes, rtol=1e-6, atol=1e-7)
    assert module.training == train and switches() == before


def test_second_derivatives_of_the_function() -> None:
    x, w = seeded(2, 1, 3, 4), seeded(2, 1, 3, 4, seed=1)
    expected = by_loops(lambda t: torch.autograd.grad((by_hand(t) * w).sum(), t, create_graph=True)[0], x)
    H = hessian_operator(lambda t: (attention(t) * w).sum(), x)
    v = seeded(2, 1, 3, 4, seed=2)
    torch.testing.assert_close(H @ v, torch.tensordot(expected, v, 4))


def test_first_derivatives_are_differentiable_upstream() -> None:
    x = seeded(1, 2, 3, 4).requires_grad_()
    expected = torch.autograd.grad((torch.func.jacrev(by_hand)(x) ** 2).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad((jacobian(attention, x).jacobian ** 2).sum(), x)[0], expected)
    A = linearize(attention, x).jacobian
    assert torch.autograd.grad((A.T @ torch.ones_like(x)).sum(), x)[0].abs().max() > 0


def test_attention_before_an_op_without_forward_mode() -> None:
    x, v = seeded(1, 2, 3, 4), seeded(1, 2, 3, 4, seed=1)
    A = linearize(lambda t: ReverseOnlySquare.apply(attention(t)), x).jacobian
    expected = torch.tensordot(torch.func.jacrev(lambda t: by_hand(t) ** 2)(x), v, 4)
    torch.testing.assert_close(A @ v, expected)


def test_switches_come_back_after_errors_and_nesting() -> None:
    before = switches()
    with pytest.raises(KeyError), differentiable_attention(), differentiable_attention():
        assert switches() == [False, False, False, True, False]
        raise KeyError
    assert switches() == before
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with differentiable_attention():
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(before[0])


def test_threads_that_overlap_leave_the_switches_as_they_were() -> None:
    before = switches()
    entered, left = threading.Barrier(2), threading.Event()

    def second() -> None:
        entered.wait(10)
        with differentiable_attention():
            entered.wait(10)
            left.wait(10)

    other = threading.Thread(target=second)
    with differentiable_attention():
        other.start()
        entered.wait(10)
        entered.wait(10)
    assert switches() == [False, False, False, True, False], "the other thread still needs them"
    left.set()
    other.join(10)
    assert switches() == before
