"""Each planted program of the open and the unseen set behaves differently from its sound twin in some situation."""

import copy
import faulthandler
import os
import pickle

import pytest
import torch
from benchmarks.checks import sets
from torch import nn

BUGS = sets.bugs_of("open") | sets.bugs_of("unseen")
CRASHES = {
    "null_pointer": lambda p: p.at(cotangent=lambda y: strided(drawn(y))),
    "kernel_assertion": lambda p: rows_of_first(p, 5),
    "assertion_on_strides": lambda p: p.at(cotangent=lambda y: torch.ones((), dtype=y.dtype).expand(y.shape)),
    "division_of_integers": lambda p: rows_of_first(p, 1),
}
SEED = 3


def drawn(t, seed=0):
    generator = torch.Generator().manual_seed(SEED + seed)
    return torch.randn(t.shape, generator=generator, dtype=t.dtype)


def stored(t):
    return t if t.layout == torch.strided else t.coalesce().values()


class Probe:
    """What one program does in many situations, each with fresh objects."""

    def __init__(self, name, planted):
        self.name, self.planted = name, planted

    def fresh(self):
        torch.manual_seed(1)
        program = BUGS[self.name].make(BUGS[self.name].dtypes[0], self.planted)
        inputs = [t.clone() if t.layout == torch.strided else t for t in program.inputs]
        return program.call, inputs

    def gradient(self, call, inputs, cotangent=None, *, retain=False):
        own = list(call.parameters()) if isinstance(call, nn.Module) else []
        wanted = [t for t in [*inputs, *own] if t.requires_grad]
        outputs = call(*inputs)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        u = [(cotangent or drawn)(y.detach()) for y in outputs]
        pairs = [(y, g) for y, g in zip(outputs, u, strict=True) if y.requires_grad]
        if not pairs or not wanted:
            return [y.detach() for y in outputs]
        ys, us = zip(*pairs, strict=True)
        found = [*torch.autograd.grad(ys, wanted, us, allow_unused=True, retain_graph=True)]
        if retain:
            found += torch.autograd.grad(ys, wanted, us, allow_unused=True)
        return [*(y.detach() for y in outputs), *(stored(g) for g in found if g is not None), *us, *(stored(t) for t in inputs)]

    def at(self, change=lambda t: t, cotangent=None, calls=1, **options):
        call, inputs = self.fresh()
        found = []
        for _ in range(calls):
            changed = [change(t) for t in inputs]
            leaves = [t.detach().requires_grad_(t.is_floating_point() or t.is_complex()) for t in changed]
            found += self.gradient(call, leaves, cotangent, **options)
        return found


def strided(t):
    if t.layout != torch.strided or t.ndim < 2:
        return t
    return torch.cat([t.mT, t.mT], -1)[..., : t.shape[-2]].mT


def offset(t):
    return torch.stack([drawn(t, 5), t])[1] if t.layout == torch.strided and t.is_floating_point() else t


def expanded(t):
    return t[:1].expand(t.shape) if t.layout == torch.strided and t.ndim and t.is_floating_point() else t


def last(t):
    return t.to(memory_format=torch.channels_last) if t.ndim == 4 else t


def rows(count):
    def change(t):
        if t.layout != torch.strided or not t.ndim:
            return t
        return torch.cat([t] * (count // len(t) + 1))[:count].contiguous()

    return change


def all_zero(t):
    return t if t.is_floating_point() or t.is_complex() else torch.zeros_like(t)


def scaled(factor):
    return lambda t: t * factor if t.is_floating_point() else t


def rows_of_first(probe, count):
    """Another number of rows in the inputs that have as many as the first; what is left is a parameter."""
    _, inputs = probe.fresh()
    size = inputs[0].shape[0] if inputs[0].ndim else 0
    return probe.at(lambda t: rows(count)(t) if t.ndim and t.shape[0] == size else t)


def batches(probe):
    """One object called with 4, 5 and 3 rows."""
    call, inputs = probe.fresh()
    found = []
    for count in (4, 5, 3):
        found += probe.gradient(call, [rows(count)(t).requires_grad_(t.is_floating_point()) for t in inputs])
    return found


def interleaved(probe):
    call, inputs = probe.fresh()
    first = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    y = call(*first)
    call(*[2 * t if t.is_floating_point() else t for t in inputs])
    wanted = [t for t in [*first, *(call.parameters() if isinstance(call, nn.Module) else [])] if t.requires_grad]
    found = torch.autograd.grad(y, wanted, drawn(y.detach()), allow_unused=True)
    return [g for g in found if g is not None]


def other_values(probe):
    call, inputs = probe.fresh()
    found = []
    for factor in (1.0, 1.5, -0.5):
        leaves = [t.detach() * factor if t.is_floating_point() else t for t in inputs]
        found += probe.gradient(call, [t.requires_grad_(t.is_floating_point()) for t in leaves])
    if isinstance(call, nn.Module):
        with torch.no_grad():
            for p in call.parameters():
                p.mul_(1.5)
        found += probe.gradient(call, leaves)
    return found


def accumulated(probe, inputs_too=True):
    call, inputs = probe.fresh()
    if not isinstance(call, nn.Module):
        return []
    for p in call.parameters():
        p.grad = torch.ones_like(p)
    kept = []
    for _ in range(2):
        y = call(*[t.detach().clone().requires_grad_(inputs_too and t.is_floating_point()) for t in inputs])
        y = y + call(*inputs)
        y.backward(drawn(y.detach()), retain_graph=True)
        kept += [p.grad.clone() for p in call.parameters() if p.grad is not None]
        kept += torch.autograd.grad(y, list(call.parameters()), drawn(y.detach()), allow_unused=True, retain_graph=True)
    return [t for t in kept if t is not None]


def subsets(probe):
    found = []
    call, inputs = probe.fresh()
    own = list(call.parameters()) if isinstance(call, nn.Module) else []
    for k in range(len(inputs) + len(own)):
        call, inputs = probe.fresh()
        own = list(call.parameters()) if isinstance(call, nn.Module) else []
        leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
        chosen = [*leaves, *own][k]
        if chosen.is_floating_point():
            chosen.requires_grad_(False)
        found += probe.gradient(call, leaves)
    return found


def in_eval(probe):
    call, inputs = probe.fresh()
    if not isinstance(call, nn.Module):
        return []
    return probe.gradient(call.eval(), [t.requires_grad_(t.is_floating_point()) for t in inputs])


def copied(probe):
    call, inputs = probe.fresh()
    if not isinstance(call, nn.Module):
        return []
    found = []
    for duplicate in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        try:
            twin = duplicate(call)
        except (pickle.PicklingError, AttributeError):
            continue
        with torch.no_grad():
            for p in twin.parameters():
                p.add_(0.25)
        found += [twin(*inputs).detach(), call(*inputs).detach(), torch.tensor(float(len(list(twin.parameters()))))]
    other, _ = probe.fresh()
    with torch.no_grad():
        for t in (*other.parameters(), *other.buffers()):
            t.mul_(0.5)
    other.load_state_dict(call.state_dict())
    return [*found, other(*inputs).detach(), other.eval()(*inputs).detach()]


def second_order(probe):
    """The slope of the squared gradient of the squared outputs."""
    call, inputs = probe.fresh()
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = torch.utils._pytree.tree_leaves(call(*leaves))
    first = torch.autograd.grad(sum(y.square().sum() for y in outputs), leaves, create_graph=True)
    return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))


def second_order_weighed(probe):
    """The slope of a weighed sum of the gradient of weighed outputs."""
    call, inputs = probe.fresh()
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = torch.utils._pytree.tree_leaves(call(*leaves))
    first = torch.autograd.grad(sum((y * drawn(y)).sum() for y in outputs), leaves, create_graph=True)
    return list(torch.autograd.grad(sum((g * drawn(g, 1)).sum() for g in first), leaves))


def other_integers(probe):
    """One object called with the given integers, then with others in the same range."""
    call, inputs = probe.fresh()
    found = probe.gradient(call, inputs)
    return found + probe.gradient(call, [t if t.is_floating_point() else t.flip(0) for t in inputs])


def in_place(probe):
    """One object called with the same tensors, whose values change between the calls."""
    call, inputs = probe.fresh()
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    found = probe.gradient(call, leaves)
    for t in leaves:
        if t.is_floating_point():
            t.data.mul_(0.5)
    return [t.clone() for t in found] + probe.gradient(call, leaves)


def forward_mode(probe):
    call, inputs = probe.fresh()
    return [torch.func.jvp(call, tuple(inputs), tuple(drawn(t) for t in inputs))[1]]


def mapped(axis):
    def probe_of(probe):
        call, inputs = probe.fresh()
        return [torch.func.vmap(call, in_dims=axis)(*(torch.stack([t, 2 * t, t - 1], axis) for t in inputs))]

    return probe_of


def own_diagonal(probe):
    call, inputs = probe.fresh()
    return list(call.diag_hessian(*inputs).values())


PROBES = {
    "gradient": lambda p: p.at(),
    "repeated": lambda p: p.at(retain=True),
    "many": lambda p: p.at(calls=60),
    "strided cotangent": lambda p: p.at(cotangent=lambda y: strided(drawn(y))),
    "offset cotangent": lambda p: p.at(cotangent=lambda y: offset(drawn(y))),
    "expanded cotangent": lambda p: p.at(cotangent=lambda y: torch.ones((), dtype=y.dtype).expand(y.shape)),
    "last cotangent": lambda p: p.at(cotangent=lambda y: last(drawn(y))),
    "large cotangent": lambda p: p.at(cotangent=lambda y: 10 * drawn(y)),
    "small cotangent": lambda p: p.at(cotangent=lambda y: 1e-5 * drawn(y)),
    "strided": lambda p: p.at(strided),
    "offset": lambda p: p.at(offset),
    "expanded": lambda p: p.at(expanded),
    "last": lambda p: p.at(last),
    "zeros": lambda p: p.at(all_zero),
    "large": lambda p: p.at(scaled(4.0)),
    "small": lambda p: p.at(scaled(0.1)),
    "negative": lambda p: p.at(scaled(-1.0)),
    **{f"{n} rows": lambda p, n=n: rows_of_first(p, n) for n in (0, 1, 3, 5, 33)},
    "batches": batches,
    "interleaved": interleaved,
    "other values": other_values,
    "accumulated": accumulated,
    "frozen input": lambda p: accumulated(p, inputs_too=False),
    "subsets": subsets,
    "eval": in_eval,
    "copied": copied,
    "second order": second_order,
    "second order, weighed": second_order_weighed,
    "other integers": other_integers,
    "in place": in_place,
    "forward mode": forward_mode,
    "mapped": mapped(0),
    "mapped last": mapped(-1),
    "diagonal": own_diagonal,
}


def outcome(probe, situation):
    try:
        return situation(probe)
    except (RuntimeError, IndexError, AttributeError, TypeError, ValueError, NotImplementedError, AssertionError) as error:
        return type(error)


def differs(a, b):
    if isinstance(a, type) or isinstance(b, type):
        return a is not b
    if [t.shape for t in a] != [t.shape for t in b]:
        return True
    return any(not torch.allclose(s, t, rtol=1e-10, atol=1e-14, equal_nan=True) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize("name", [n for n in BUGS if n not in CRASHES])
def test_a_planted_program_differs_from_its_twin_somewhere(name):
    planted, twin = Probe(name, True), Probe(name, False)
    assert any(differs(outcome(planted, s), outcome(twin, s)) for s in PROBES.values())


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_ends_the_process(name):
    def ending(planted):
        process = os.fork()
        if not process:
            faulthandler.disable()
            CRASHES[name](Probe(name, planted))
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    assert ending(True) < 0 and ending(False) == 0
