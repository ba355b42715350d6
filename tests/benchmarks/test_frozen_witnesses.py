"""Each frozen bug is really there: a witness, written for it alone, is zero for the sound twin and not for the planted one."""

from __future__ import annotations

import copy

import pytest
import torch
from benchmarks.checks.frozen import BUGS, functional
from torch import Tensor, nn

BY_NAME = {bug.name.removeprefix("frozen "): bug for bug in BUGS}


def pull(f, x: Tensor, u: Tensor) -> Tensor:
    return torch.autograd.grad(f(x), x, u)[0]


def noise(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaf(program) -> Tensor:
    return program.inputs[0].clone().requires_grad_()


def difference(a, b) -> float:
    return (a - b).abs().max().item()


def slope_along_a_direction(program) -> float:
    """The gradient along a direction in all leaves against a difference of five points."""
    f, leaves = functional(program)
    leaves = [x for x in leaves if x.is_floating_point()]
    if len(leaves) != len(functional(program)[1]):
        raise AssertionError("integer inputs need a witness of their own")
    start = [x.detach().clone() for x in leaves]
    directions = [noise(*x.shape, seed=seed) for seed, x in enumerate(start)]
    u = noise(*f(*leaves).shape)

    def value(t: float) -> float:
        return (f(*(x + t * d for x, d in zip(start, directions, strict=True))) * u).sum().item()

    h = 2e-4
    expected = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    gradients = torch.autograd.grad((f(*leaves) * u).sum(), leaves, allow_unused=True)
    found = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True) if g is not None)
    return abs(found - expected) if abs(found - expected) > 1e-6 * (1 + abs(expected)) else 0.0


def small_weights(program) -> float:
    _, leaves = functional(program)
    v = leaves[1]
    (g,) = torch.autograd.grad(program.call(*leaves), v)
    return difference(g, 2e-6 * v) / 1e-6


def far_outside(program) -> float:
    x = torch.full((2,), 5.0, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(program.call(x, *program.inputs[1:]).sum(), x)
    y = program.call(x.detach() + 1e-3, *program.inputs[1:]) - program.call(x.detach() - 1e-3, *program.inputs[1:])
    return difference(g, y / 2e-3) if difference(g, y / 2e-3) > 1e-9 else 0.0


def second_derivative(program) -> float:
    f, leaves = functional(program)
    return 0.0 if torch.autograd.gradgradcheck(f, leaves, raise_exception=False) else 1.0


def forward_mode(program) -> float:
    x, y = program.inputs
    tangent = torch.func.jvp(program.call, (x, y), (torch.zeros_like(x), torch.ones_like(y)))[1]
    return difference(tangent, x * torch.sigmoid(y) * (1 - torch.sigmoid(y)))


def homogeneity(program) -> float:
    x = leaf(program)
    u = noise(*program.call(x).shape)
    return difference(-3 * pull(program.call, x, u), pull(program.call, x, -3 * u))


def sliced_cotangent(program) -> float:
    x = leaf(program)
    u = noise(x.shape[0], x.shape[1] + 3)[:, 1:-2]
    return difference(pull(program.call, x, u), pull(program.call, x, u.clone()))


def transposed_cotangent(program) -> float:
    x = leaf(program)
    u = noise(*x.shape[::-1]).T
    try:
        return difference(pull(program.call, x, u), pull(program.call, x, u.contiguous()))
    except RuntimeError:
        return 1.0


def channels_last(program) -> float:
    x, u = program.inputs[0], noise(*program.inputs[0].shape)
    other = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    return difference(pull(program.call, leaf(program), u), pull(program.call, other, u))


def offset(program) -> float:
    x, u = program.inputs[0], noise(*program.inputs[0].shape)
    other = torch.cat([noise(7), x.flatten()])[7:].view(x.shape).requires_grad_()
    return difference(pull(program.call, leaf(program), u), pull(program.call, other, u))


def input_kept(program) -> float:
    before = program.inputs[0].clone()
    program.call(program.inputs[0])
    return difference(before, program.inputs[0])


def cotangent_kept(program) -> float:
    x = leaf(program)
    u = noise(*x.shape)
    before = u.clone()
    pull(program.call, x, u)
    return difference(before, u)


def other_points(program) -> float:
    program.call(*program.inputs)
    x, y = 2 * program.inputs[0], program.inputs[1]
    found = program.call(x, y) - torch.cdist(x, y).square()
    return found.abs().max().item() if found.abs().max() > 1e-9 else 0.0


def after_another_point(program) -> float:
    x, u = leaf(program), torch.ones(5, dtype=torch.float64)
    first = pull(program.call, x, u)
    pull(program.call, (-program.inputs[0]).requires_grad_(), u)
    return difference(first, pull(program.call, x, u))


def second_backward(program) -> float:
    x = leaf(program)
    y, u = program.call(x), noise(*program.inputs[0].shape)
    return difference(*(torch.autograd.grad(y, x, u, retain_graph=True)[0] for _ in range(2)))


def same_row_twice(program) -> float:
    table = leaf(program)
    (g,) = torch.autograd.grad(program.call(table, torch.tensor([1, 1, 2, 0])).sum(), table)
    return abs(g[1, 0].item() - 2)


def ties_share(program) -> float:
    x = leaf(program)
    return difference(pull(program.call, x, torch.ones(3, dtype=torch.float64)).sum(1), torch.ones(3))


def exact_product(program) -> float:
    x, w = leaf(program), program.inputs[1]
    u = noise(4, 3)
    error = difference(torch.autograd.grad(program.call(x, w), x, u)[0], u @ w.T)
    return error if error > 1e-12 else 0.0


def mapped(program) -> float:
    x = noise(3, *program.inputs[0].shape)
    return difference(torch.vmap(program.call)(x), torch.stack([program.call(t) for t in x])) // 1e-9


def stored_values(program) -> float:
    a, x = program.inputs
    u = noise(a.shape[0], x.shape[1])
    at = a.clone().requires_grad_()
    (g,) = torch.autograd.grad(program.call(at, x), at, u)
    return difference(g.coalesce().values(), (u @ x.T)[tuple(a.indices())])


def weight_gradient(module: nn.Module, x: Tensor) -> Tensor:
    return torch.autograd.grad(module(x).sum(), module.weight)[0]


def interleaved(program) -> float:
    module, (x,) = program.call, program.inputs
    y = module(x)
    module(2 * x)
    return difference(torch.autograd.grad(y.sum(), module.weight)[0], weight_gradient(module, x))


def accumulated_twice(program) -> float:
    module, (x,) = program.call, program.inputs
    module(x).sum().backward()
    once = module.weight.grad.clone()
    module(x).sum().backward()
    return difference(module.weight.grad, 2 * once)


def bias_beside_a_frozen_weight(program) -> float:
    program.call.weight.requires_grad_(False)
    program.call(program.inputs[0]).sum().backward()
    return float(program.call.bias.grad is None)


def batch_is_the_sum_of_rows(program) -> float:
    module, x = program.call, program.inputs[0][:3]
    return difference(weight_gradient(module, x), sum(weight_gradient(module, row[None]) for row in x)) // 1e-9


def no_rows(program) -> float:
    return float(not weight_gradient(program.call, program.inputs[0][:0]).isfinite().all())


def forward_leaves_grad(program) -> float:
    program.call(program.inputs[0])
    return float(any(p.grad is not None for p in program.call.parameters()))


def in_eval_mode(program) -> float:
    module, x = program.call.eval(), leaf(program)
    u = noise(*x.shape)
    expected = u * module.weight * (module.running_var + 1e-5).rsqrt()
    return difference(pull(module, x, u), expected) // 1e-9


def storage_of_one(program) -> float:
    parameters = list(program.call.parameters())
    return float(len(parameters) - len({p.untyped_storage().data_ptr() for p in parameters}))


def copy_has_its_own(program) -> float:
    clone = copy.deepcopy(program.call)
    return float(torch.autograd.grad(clone(program.inputs[0]).sum(), clone.weight, allow_unused=True)[0] is None)


def all_leaves_named(program) -> float:
    named, found = set(program.call.parameters()), set()
    nodes = [program.call(program.inputs[0]).grad_fn]
    while nodes:
        node = nodes.pop()
        found |= {node.variable} if hasattr(node, "variable") else set()
        nodes += [after for after, _ in node.next_functions if after is not None]
    return float(len(found - named))


def linear_in_its_mask(program) -> float:
    module, x = program.call, leaf(program)
    torch.manual_seed(3)
    y = module(x)
    kept = (y != 0).to(y.dtype) / 0.6
    return difference(torch.autograd.grad(y, x, torch.ones_like(y))[0], kept @ module.weight)


def own_diagonal(program) -> float:
    module, (x,) = program.call, program.inputs
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(module, {"weight": w}, (x,)))(module.weight.detach())
    return difference(jacobian.square().sum((0, 1)), module.diag_hessian(x)["weight"]) // 1e-9


SPECIAL = {
    "weight decay": small_weights, "huber tail": far_outside, "table ends": far_outside, "saved slope": second_derivative,
    "fused second": second_derivative, "gate tangent": forward_mode, "dice loss": homogeneity, "guided relu": homogeneity,
    "sliced cotangent": sliced_cotangent, "viewed cotangent": transposed_cotangent, "channels last result": channels_last,
    "storage offset": offset, "softmax in place": input_kept, "cotangent in place": cotangent_kept,
    "distance cache": other_points, "dirty buffer": after_another_point, "slope in place": second_backward,
    "gather assigns": same_row_twice, "tied by data": storage_of_one,
    "tied maxima": ties_share, "narrow backward": exact_product, "vmap axis": mapped, "sparse product": stored_values,
    "saved on module": interleaved, "fused accumulation": accumulated_twice, "frozen weight": bias_beside_a_frozen_weight,
    "made for batch": batch_is_the_sum_of_rows, "empty batch": no_rows, "polluted grad": forward_leaves_grad,
    "eval statistics": in_eval_mode, "bound lambda": copy_has_its_own, "plain list": all_leaves_named,
    "fresh mask": linear_in_its_mask, "unsquared slope": own_diagonal,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, bug in BY_NAME.items() if bug.kind != "crash"])
def test_witness(name: str) -> None:
    witness = SPECIAL.get(name, slope_along_a_direction)
    with torch.random.fork_rng():
        assert witness(BY_NAME[name].make(torch.float64, False)) < 1e-9
        assert witness(BY_NAME[name].make(torch.float64, True)) > 1e-8
