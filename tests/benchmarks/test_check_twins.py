"""The sound twins of the unseen set stay sound: in every layout, size, mode, order of calls, in copies, in float32."""

import copy
import pickle

import pytest
import torch
from benchmarks.checks import sets
from torch import nn

UNSEEN = sets.bugs_of("unseen")
SPARSE = [n for n, bug in UNSEEN.items() if bug.kind == "sparse input"]
DENSE = [n for n in UNSEEN if n not in SPARSE]
KINKS = ["larger_of_two", "two_largest"]
MODULES = [n for n, bug in UNSEEN.items() if isinstance(bug.make(torch.float64, False).call, nn.Module)]


def drawn(t, seed=0):
    generator = torch.Generator().manual_seed(30 + seed)
    return torch.randn(t.shape, generator=generator, dtype=torch.complex128 if t.is_complex() else torch.float64).to(t.dtype)


def varied(t):
    return t.is_floating_point() or t.is_complex()


def plain(t):
    return t.detach().clone(memory_format=torch.contiguous_format)


def strided(t):
    """Every other element of a larger tensor, transposed where there are two axes."""
    if t.ndim < 2:
        return torch.stack([t, t + 1], -1)[..., 0] if t.ndim else t
    return torch.stack([t.mT, t.mT + 1], -1)[..., 0].mT


def sliced(t):
    """The first columns of a larger tensor, transposed where there are two axes."""
    return torch.cat([t.mT, t.mT + 1], -1)[..., : t.shape[-2]].mT if t.ndim > 1 else t


def offset(t):
    return torch.cat([torch.ones_like(t).flatten(), t.flatten()])[t.numel() :].view(t.shape)


def expanded(t):
    return t[:1].expand(t.shape) if t.ndim and varied(t) else t


def outputs_of(call, leaves):
    torch.manual_seed(4)
    found = call(*leaves)
    return (found,) if isinstance(found, torch.Tensor) else found


def gradients(call, inputs, layout=plain):
    """By inputs, then parameters; the cotangents are fixed draws in a layout."""
    leaves = [t.detach().requires_grad_(varied(t)) for t in inputs]
    own = list(call.parameters()) if isinstance(call, nn.Module) else []
    outputs = outputs_of(call, leaves)
    wanted = [t for t in [*leaves, *own] if t.requires_grad]
    cotangents = [layout(drawn(y.detach(), k)) for k, y in enumerate(outputs)]
    found = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


def fresh(name, dtype=torch.float64):
    program = UNSEEN[name].make(dtype, False)
    return program.call, list(program.inputs)


def same(found, expected, rtol=1e-12, atol=1e-14):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, check_dtype=False)


def slope_of_values(call, inputs, h=1e-4):
    """By four values: the derivative of the weighed outputs in a direction, beside that of the gradients."""
    own = [p for p in call.parameters() if p.requires_grad] if isinstance(call, nn.Module) else []
    start = [p.detach().clone() for p in own]

    def at(step):
        with torch.no_grad():
            for k, (p, s) in enumerate(zip(own, start, strict=True)):
                p.copy_(s + step * drawn(s, 40 + k))
            moved = [t + step * drawn(t, 60 + k) if varied(t) else t for k, t in enumerate(inputs)]
            return sum((drawn(y, k).conj() * y).sum().real for k, y in enumerate(outputs_of(call, moved)))

    expected = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    at(0.0)
    tangents = [drawn(t, 60 + k) for k, t in enumerate(inputs) if varied(t)] + [drawn(s, 40 + k) for k, s in enumerate(start)]
    found = sum((g.conj() * v).sum().real for g, v in zip(gradients(call, inputs), tangents, strict=True))
    return torch.as_tensor(found), torch.as_tensor(expected)


@pytest.mark.parametrize("name", UNSEEN)
def test_a_planted_program_gives_the_values_of_its_twin_at_its_first_call(name):
    for dtype in UNSEEN[name].dtypes:
        planted, sound = (UNSEEN[name].make(dtype, error) for error in (True, False))
        same(outputs_of(planted.call, planted.inputs), outputs_of(sound.call, sound.inputs), rtol=1e-6)


@pytest.mark.parametrize("layout", [strided, sliced, offset, expanded])
@pytest.mark.parametrize("name", DENSE)
def test_gradients_do_not_depend_on_the_layout(name, layout):
    call, inputs = fresh(name)
    laid = (
        inputs if name == "solve_not_transposed" and layout is expanded else [layout(t) for t in inputs]
    )  # not a singular one
    same(gradients(call, laid), gradients(call, [plain(t) for t in laid]))
    same(gradients(call, inputs, layout), gradients(call, inputs, lambda u: plain(layout(u))))


def rows(t, count):
    return torch.cat([t] * (count // len(t) + 1))[:count] * (1.0 + 0.01 * torch.arange(count).view(-1, *[1] * (t.ndim - 1)))


def with_rows(inputs, count):
    """As many rows in every tensor that has as many as the first."""
    size = inputs[0].shape[0]
    return [rows(t, count).to(t.dtype) if t.ndim and t.shape[0] == size else t for t in inputs]


@pytest.mark.parametrize("count", [1, 5, 33])
@pytest.mark.parametrize("name", [n for n in DENSE if n not in KINKS])
def test_gradients_are_those_of_the_values_for_any_number_of_rows(name, count):
    call, inputs = fresh(name)
    inputs = with_rows(inputs, count)
    try:
        outputs_of(call, inputs)
    except (RuntimeError, IndexError):
        return  # a parameter, or a matrix that must be square
    found, expected = slope_of_values(call, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", [n for n, bug in UNSEEN.items() if bug.kind == "zero size"])
def test_the_gradients_of_no_rows_are_zero(name):
    call, inputs = fresh(name)
    for g in gradients(call, with_rows(inputs, 0)):
        assert not g.any() and g.isfinite().all()


@pytest.mark.parametrize("name", MODULES)
def test_gradients_in_eval_mode_are_those_of_the_values(name):
    call, inputs = fresh(name)
    found, expected = slope_of_values(call.eval(), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", DENSE)
def test_calls_leave_nothing_behind_and_change_nothing(name):
    call, inputs = fresh(name)
    given = [plain(t) for t in inputs]
    before = gradients(call, inputs)
    leaves = [t.detach().requires_grad_(varied(t)) for t in inputs]
    first = outputs_of(call, leaves)
    values = [y.detach().clone() for y in first]
    other = [t * 1.5 if varied(t) else t.flip(0) for t in inputs]
    same(gradients(call, other), gradients(fresh(name)[0], other))
    outputs_of(call, [t.clone().requires_grad_(varied(t)) for t in other])
    wanted = [t for t in [*leaves, *(call.parameters() if isinstance(call, nn.Module) else [])] if t.requires_grad]
    cotangents = [drawn(y, k) for k, y in enumerate(values)]
    for _ in range(2):
        found = torch.autograd.grad(first, wanted, cotangents, retain_graph=True, allow_unused=True)
        same([torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)], before)
    same(first, values)
    same(inputs, given, rtol=0, atol=0)
    same(cotangents, [drawn(y, k) for k, y in enumerate(values)], rtol=0, atol=0)
    same(gradients(call, inputs), before)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_does_not_remember_sizes_or_addresses(name):
    call, inputs = fresh(name)
    leaves = [plain(t) for t in inputs]
    gradients(call, with_rows(inputs, 7))
    same(gradients(call, leaves), gradients(*fresh(name)))
    for t in leaves:
        t.mul_(0.5) if varied(t) else t
    same(gradients(call, leaves), gradients(fresh(name)[0], [plain(t) for t in leaves]))


@pytest.mark.parametrize("name", DENSE)
def test_gradients_are_proportional_to_the_cotangent(name):
    call, inputs = fresh(name)
    for factor in (-1e-5, 1000.0):
        found = gradients(call, inputs, lambda u, factor=factor: factor * u)
        same([g / factor for g in found], gradients(call, inputs))


@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_added_to_those_that_are_there(name):
    call, inputs = fresh(name)
    own = list(call.parameters())
    expected = gradients(call, inputs)[-len(own) :]
    for p in own:
        p.grad = torch.ones_like(p)
    for _ in range(2):
        outputs = outputs_of(call, inputs)
        torch.autograd.backward(outputs, [drawn(y.detach(), k) for k, y in enumerate(outputs)])
    same([p.grad for p in own], [1 + 2 * g for g in expected])
    same(gradients(call, inputs)[-len(own) :], expected)


@pytest.mark.parametrize("name", MODULES)
def test_whatever_learns_is_a_parameter(name):
    call, inputs = fresh(name)
    call.requires_grad_(False)
    assert not any(y.requires_grad for y in outputs_of(call, inputs))


@pytest.mark.parametrize("name", DENSE)
def test_a_frozen_leaf_takes_no_gradient_from_the_others(name):
    call, inputs = fresh(name)
    own = list(call.parameters()) if isinstance(call, nn.Module) else []
    leaves = [t.detach().requires_grad_() for t in inputs if varied(t)]
    expected = gradients(call, inputs)
    for k, frozen in enumerate([*leaves, *own]):
        frozen.requires_grad_(False)
        rest = iter(leaves)
        outputs = [y for y in outputs_of(call, [next(rest) if varied(t) else t for t in inputs]) if y.requires_grad]
        wanted = [t for t in [*leaves, *own] if t.requires_grad]
        if wanted and len(outputs) == len(outputs_of(call, inputs)):
            cotangents = [drawn(y.detach(), j) for j, y in enumerate(outputs)]
            found = torch.autograd.grad(outputs, wanted, cotangents, allow_unused=True)
            found = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]
            same(found, expected[:k] + expected[k + 1 :])
        frozen.requires_grad_(True)


@pytest.mark.parametrize("factor", [0.1, -2.0, 4.0])
@pytest.mark.parametrize("name", [n for n, bug in UNSEEN.items() if bug.kind == "region of x"])
def test_gradients_are_those_of_the_values_in_other_regions(name, factor):
    call, inputs = fresh(name)
    found, expected = slope_of_values(call, [factor * t for t in inputs])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", [n for n, bug in UNSEEN.items() if bug.kind == "duplicated index"])
def test_gradients_are_those_of_the_values_where_all_indices_are_the_same(name):
    call, inputs = fresh(name)
    found, expected = slope_of_values(call, [t if varied(t) else torch.zeros_like(t) for t in inputs])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", MODULES)
def test_copies_and_files_behave_alike_and_share_nothing(name):
    call, inputs = fresh(name)
    expected = gradients(call, inputs)
    other, _ = fresh(name)
    with torch.no_grad():
        for t in (*other.parameters(), *other.buffers()):
            t.mul_(0.5)
    other.load_state_dict(call.state_dict())
    for twin in (copy.deepcopy(call), pickle.loads(pickle.dumps(call)), other):
        same(gradients(twin, inputs), expected)
        with torch.no_grad():
            for t in twin.parameters():
                t.add_(1)
        same(gradients(call, inputs), expected)


@pytest.mark.parametrize("name", [n for n in UNSEEN if n not in SPARSE and torch.float32 in UNSEEN[n].dtypes])
def test_float32_is_near_float64(name):
    same(gradients(*fresh(name, torch.float32)), gradients(*fresh(name)), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", [n for n, bug in UNSEEN.items() if bug.kind == "vmap"])
def test_a_batched_call_is_the_loop(name, axis):
    call, inputs = fresh(name)
    batched = [torch.stack([t, t.cos(), t - 1], axis) for t in inputs]
    expected = torch.stack([call(*parts) for parts in zip(*(t.unbind(axis) for t in batched), strict=True)])
    torch.testing.assert_close(torch.func.vmap(call, in_dims=axis)(*batched), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", [n for n, bug in UNSEEN.items() if bug.kind == "diagonal of the module"])
def test_the_own_diagonal_is_the_sum_over_outputs_of_squared_derivatives(name):
    call, inputs = fresh(name)
    names, own = zip(*call.named_parameters(), strict=True)
    squares = [sum(g.square() for g in columns) for columns in zip(
        *(torch.autograd.grad(y, own, retain_graph=True) for y in call(*inputs).flatten()), strict=True)]  # fmt: skip
    found = call.diag_hessian(*inputs)
    same([found[n] for n in names], squares)
