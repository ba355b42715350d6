"""Derivatives of pseudo-inverses of convolutions, against those of torch.linalg.pinv of the matrix."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import hesse
from hesse.convolutions.gradients import TruncationWarning
from hesse.convolutions.operator import Convolution
from hesse.convolutions.pseudo_inverse import ConvolutionPseudoInverse
from hesse.core.errors import UnsupportedError
from tests.convolutions.dense_oracle import CASES, Case

SMALL = [case for case in CASES if case.name in ("square", "tall", "wide", "strided", "groups", "complex tall", "complex wide")]


def solution(case: Case, weight: Tensor, Y: Tensor, transposed: bool = False, rtol: float | None = None) -> Tensor:
    pinv = ConvolutionPseudoInverse(case.operator(weight), rtol=rtol)
    return (pinv.T if transposed else pinv) @ Y


def oracle(case: Case, weight: Tensor, Y: Tensor, transposed: bool = False, rtol: float | None = None) -> Tensor:
    M = case.matrix(weight)
    M = M.mT if transposed else M
    shape = case.operator(weight).geometry.in_shape if not transposed else case.operator(weight).geometry.out_shape
    return (Y.flatten(1) @ torch.linalg.pinv(M, rtol=rtol).mT).reshape(len(Y), *shape)


def images(case: Case, transposed: bool = False, count: int = 2) -> Tensor:
    g = case.operator(case.weight()).geometry
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, *(g.in_shape if transposed else g.out_shape), dtype=case.dtype, generator=generator)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> bool:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).norm()) <= tolerance * max(float(expected.norm()), 1e-3)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("transposed", [False, True], ids=["A", "A.T"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_the_matrix(case: Case, transposed: bool) -> None:
    weight, Y = case.weight().requires_grad_(), images(case, transposed).requires_grad_()
    found = solution(case, weight, Y, transposed)
    expected = oracle(case, weight, Y, transposed)
    assert close(found, expected)
    probe = torch.randn_like(expected)
    first = torch.autograd.grad((found * probe).real.sum(), (weight, Y), create_graph=True)
    wanted = torch.autograd.grad((expected * probe).real.sum(), (weight, Y), create_graph=True)
    for one, other in zip(first, wanted, strict=True):
        assert close(one, other)
    probes = [torch.randn_like(part) for part in wanted]
    second = torch.autograd.grad(sum((a * b).real.sum() for a, b in zip(first, probes, strict=True)), (weight, Y))
    wanted = torch.autograd.grad(sum((a * b).real.sum() for a, b in zip(wanted, probes, strict=True)), (weight, Y))
    for one, other in zip(second, wanted, strict=True):
        assert close(one, other, 1e-7)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("transposed", [False, True], ids=["A", "A.T"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_mode(case: Case, transposed: bool) -> None:
    weight, Y = case.weight(), images(case, transposed)
    tangents = (case.weight(seed=3), torch.randn_like(Y))
    _, found = jvp(lambda w, y: solution(case, w, y, transposed), (weight, Y), tangents)
    _, expected = jvp(lambda w, y: oracle(case, w, y, transposed), (weight, Y), tangents)
    assert close(found, expected)
    _, found = jvp(lambda w: solution(case, w, Y, transposed), (weight,), tangents[:1])
    _, expected = jvp(lambda w: oracle(case, w, Y, transposed), (weight,), tangents[:1])
    assert close(found, expected)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_finite_differences(case: Case) -> None:
    weight, Y = case.weight().requires_grad_(), images(case, count=1).requires_grad_()

    def f(w: Tensor, y: Tensor) -> Tensor:
        return solution(case, w, y)

    assert gradcheck(f, (weight, Y), check_forward_ad=True, fast_mode=case.name != "tall")
    assert gradgradcheck(f, (weight, Y), atol=1e-4, rtol=1e-4, fast_mode=True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["square", "tall", "wide", "dead cells"])
def test_transforms_of_torch_func(name: str) -> None:
    (case,) = [case for case in CASES if case.name == name]
    weight, Y = case.weight(), images(case)

    def loss(solve, w: Tensor, y: Tensor) -> Tensor:
        return solve(case, w, y).pow(3).sum()

    for transform in (grad, hessian, lambda f: jacfwd(grad(f)), lambda f: jacrev(jacfwd(f)), lambda f: jacfwd(jacfwd(f))):
        found = transform(lambda w: loss(solution, w, Y))(weight)
        assert close(found, transform(lambda w: loss(oracle, w, Y))(weight), 1e-7)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_vmap(case: Case) -> None:
    weights = torch.stack([case.weight(seed) for seed in range(3)])
    Y = torch.stack([images(case), 2 * images(case), images(case).flip(0)], dim=1)

    def per_pair(solve) -> Tensor:
        return vmap(lambda w, y: solve(case, w, y), in_dims=(0, 1))(weights, Y)

    assert close(per_pair(solution), torch.stack([oracle(case, w, Y[:, i]) for i, w in enumerate(weights)]))
    assert close(
        vmap(lambda y: solution(case, weights[0], y), in_dims=1)(Y),
        torch.stack([oracle(case, weights[0], Y[:, i]) for i in range(3)]),
    )
    assert close(vmap(lambda w: solution(case, w, Y[:, 0]))(weights), torch.stack([oracle(case, w, Y[:, 0]) for w in weights]))
    if case.dtype.is_complex:
        return
    by_pair = vmap(grad(lambda w, y: solution(case, w, y).sin().sum()), in_dims=(0, 1))(weights, Y)
    expected = [grad(lambda w, y: oracle(case, w, y).sin().sum())(w, Y[:, i]) for i, w in enumerate(weights)]
    assert close(by_pair, torch.stack(expected))


def _singular() -> tuple[Case, Tensor]:
    """A square convolution whose two filters are the same up to a factor; a change of the weight that keeps that so."""
    case = Case("singular", (2, 2, 3), (2, 6), {"padding": 1})
    row = case.weight()[:1]
    return case, torch.cat([row, -0.5 * row])


def test_rank_deficient_at_constant_rank() -> None:
    case, weight = _singular()
    Y = images(case)
    row = weight[:1].clone().requires_grad_()
    factor = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)

    def of(solve, r: Tensor, f: Tensor) -> Tensor:
        return solve(case, torch.cat([r, f * r]), Y, False, 1e-8)

    with warnings.catch_warnings():
        warnings.simplefilter("error", TruncationWarning)
        assert gradcheck(lambda r, f: of(solution, r, f), (row, factor), check_forward_ad=True)
        assert gradgradcheck(lambda r, f: of(solution, r, f), (row, factor), atol=1e-4, rtol=1e-4, fast_mode=True)
    expected = torch.autograd.grad(of(oracle, row, factor).pow(2).sum(), (row, factor))
    for one, other in zip(torch.autograd.grad(of(solution, row, factor).pow(2).sum(), (row, factor)), expected, strict=True):
        assert close(one, other)


def test_a_cut_off_without_a_gap_warns() -> None:
    case = Case("decaying", (1, 1, 3), (1, 12), {"padding": 1})
    weight = torch.tensor([[[0.3, 1.0, 0.5]]], dtype=torch.float64, requires_grad=True)
    values = torch.linalg.svdvals(case.matrix(weight.detach()))
    rtol = float((values[4] + values[5]) / 2 / values[0])
    found = solution(case, weight, images(case), False, rtol).sum()
    with pytest.warns(TruncationWarning, match="Choose an rtol"):
        found.backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error", TruncationWarning)
        y = images(case).requires_grad_()
        solution(case, weight.detach(), y, False, rtol).sum().backward()  # by y it is exact


def test_a_changed_weight_meets_no_old_inverse() -> None:
    case = CASES[0]
    weight, Y = case.weight(), images(case)
    pinv = ConvolutionPseudoInverse(case.operator(weight))
    for change in (lambda: weight.mul_(2), lambda: weight.data.add_(0.1), lambda: weight.copy_(case.weight(9))):
        assert close(pinv @ Y, oracle(case, weight, Y))
        change()
        assert close(pinv @ Y, oracle(case, weight, Y))
        assert close(
            pinv.T @ case.images(weight, images(case, True)),
            oracle(case, weight, case.images(weight, images(case, True)), True),
        )


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the blocks that inverses are asked to solve, and -1 for each inverse that is made."""
    from hesse.convolutions import cached, gradients

    calls: list[int] = []
    apply, make = gradients.applied, cached.ladder.inverse

    def counting(inverse, Y, **options):
        calls.append(len(Y))
        return apply(inverse, Y, **options)

    def making(A: Convolution, **options):
        calls.append(-1)
        return make(A, **options)

    monkeypatch.setattr(gradients, "applied", counting)
    monkeypatch.setattr(cached.ladder, "inverse", making)
    return calls


@pytest.mark.parametrize(("name", "more"), [("square", [2]), ("tall", [2, 2]), ("wide", [4, 2]), ("dead cells", [4, 4])])
def test_no_more_solutions_than_needed(name: str, more: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = [case for case in CASES if case.name == name]
    calls = _counted(monkeypatch)
    weight, Y = case.weight().requires_grad_(), images(case)
    if name == "dead cells":  # neither rows nor columns independent
        with torch.no_grad():
            weight[1] = weight[0]
    x = solution(case, weight, Y)
    assert calls == [-1, 2]
    x.sum().backward()
    assert calls[2:] == more
    calls.clear()
    pinv = ConvolutionPseudoInverse(case.operator(weight.detach()))
    (pinv @ Y.requires_grad_()).sum().backward()
    assert calls == [-1, 2, 2]


def test_images_under_vmap_are_one_block_and_weights_share_their_inverses(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[0]
    calls = _counted(monkeypatch)
    weights, Y = torch.stack([case.weight(seed) for seed in range(3)]), images(case, count=4)
    pinv = ConvolutionPseudoInverse(case.operator(weights[0]))
    vmap(lambda y: pinv @ y)(Y)
    assert calls == [-1, 4]
    calls.clear()
    vmap(grad(lambda w: (ConvolutionPseudoInverse(case.operator(w)) @ Y).sum()))(weights)
    assert calls.count(-1) == 3  # none again on the way back


def test_nothing_is_kept_of_the_way_to_a_solution() -> None:
    case = CASES[1]
    weight, Y = case.weight().requires_grad_(), images(case)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        x = solution(case, weight, Y)
    assert sizes == [weight.numel(), Y.numel(), x.numel()]
    assert len(x.grad_fn.next_functions) <= 4


def test_the_older_vmap_is_refused() -> None:
    case = CASES[1]
    weight = case.weight().requires_grad_()
    x = solution(case, weight, images(case))
    with pytest.raises(UnsupportedError, match="is_grads_batched"):
        torch.autograd.grad(x, weight, torch.randn(3, *x.shape, dtype=x.dtype), is_grads_batched=True)


def test_in_the_derivatives_of_hesse() -> None:
    case = CASES[1]
    weight, Y = case.weight(), images(case)
    found = hesse.hessian(lambda w: solution(case, w, Y).sin().sum(), weight).hessian
    assert close(found, hessian(lambda w: oracle(case, w, Y).sin().sum())(weight), 1e-8)
    found = hesse.jacobian(lambda w: solution(case, w, Y), weight).jacobian
    assert close(found, jacrev(lambda w: oracle(case, w, Y))(weight), 1e-8)


def test_empty_blocks() -> None:
    case = CASES[1]
    weight = case.weight().requires_grad_()
    x = solution(case, weight, images(case)[:0])
    assert x.shape == (0, *case.in_shape)
    x.sum().backward()
    assert weight.grad is not None and not bool(weight.grad.any())
