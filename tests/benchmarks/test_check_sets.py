"""The open and the unseen planted bugs: their sound twins are right, by oracles that share only the forward pass."""

import math
from typing import get_args

import pytest
import torch
from benchmarks.checks import sets
from benchmarks.checks.bug import Kind
from benchmarks.checks.ways import leaves_of
from torch import nn

OPEN, UNSEEN = sets.bugs_of("open"), sets.bugs_of("unseen")
BUGS = OPEN | UNSEEN
KINKS = {
    "maximum_ties": lambda x: x.amax(1),
    "pooling_ties": lambda x: nn.functional.max_pool2d(x[:, None], 2)[:, 0],
    "norm_at_zero": lambda x: x.norm(dim=1),
    "relu_at_zero": torch.relu,
    "larger_of_two": torch.maximum,
    "two_largest": lambda x: x.topk(2, 1).values.sum(1),
}
SEED = 3


@pytest.mark.parametrize(("name", "count"), [("open", 68), ("unseen", 60)])
def test_a_set_is_large_and_of_every_kind_and_its_names_are_unique(name, count):
    files = sorted(sets.Path(sets.__file__).parent.glob(sets.SETS[name]))
    written = [bug.name for file in files for bug in bugs_in(file)]
    bugs = sets.bugs_of(name)
    assert len(written) == len(set(written)) == len(bugs) >= count
    assert {bug.kind for bug in bugs.values()} == set(get_args(Kind))
    assert all(bug.about and ":" not in bug.name and bug.dtypes for bug in bugs.values())


def test_no_name_is_in_two_sets():
    assert len(BUGS | sets.bugs_of("frozen")) == sum(len(sets.bugs_of(name)) for name in sets.SETS)


def bugs_in(file):
    return sets.importlib.import_module(f"benchmarks.checks.{file.stem}").BUGS


def test_cases_are_named_and_read_back():
    found = sets.cases(["open"], ["float64", "float32"], ["square_half", "backward_in_float32"])
    assert {str(case) for case in found} == {
        "open:square_half:float64:planted", "open:square_half:float64:sound",
        "open:square_half:float32:planted", "open:square_half:float32:sound",
        "open:backward_in_float32:float64:planted", "open:backward_in_float32:float64:sound",
    }  # fmt: skip
    assert [sets.Case.parse(str(case)) for case in found] == found
    assert {case.kind for case in found} == {"factor", "dtype"}


def drawn(t, seed=0):
    generator = torch.Generator().manual_seed(SEED + seed)
    return torch.randn(t.shape, generator=generator, dtype=t.dtype)


def moved(t, v, h):
    if t.layout == torch.strided:
        return t + h * v
    return torch.sparse_coo_tensor(t.indices(), t.values() + h * v, t.shape).coalesce()


def stored(t):
    return t if t.layout == torch.strided else t.coalesce().values()


def dot(a, b):
    return (stored(a).conj() * stored(b)).sum().real


def floats(leaves):
    return [k for k, t in enumerate(leaves) if t.is_floating_point() or t.is_complex()]


def weighed(f, leaves):
    """A number: the outputs, each weighed by a fixed draw. The random numbers of a program are the same at each call."""
    torch.manual_seed(0)
    found = f(*leaves)
    found = (found,) if isinstance(found, torch.Tensor) else found
    return sum(dot(drawn(y, k), y) for k, y in enumerate(found))


def slopes(f, leaves, create_graph=False):
    wanted = [leaves[k].requires_grad_() for k in floats(leaves)]
    found = torch.autograd.grad(weighed(f, leaves), wanted, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


def along(leaves, tangents, h):
    out = [t.detach() for t in leaves]
    for k, v in zip(floats(leaves), tangents, strict=True):
        out[k] = moved(out[k], v, h)
    return out


def difference(function, h):
    """The slope of a function of one step by four values: the error is of the order h^4."""
    return (8 * (function(h) - function(-h)) - (function(2 * h) - function(-2 * h))) / (12 * h)


def sound(name):
    f, leaves = leaves_of(BUGS[name].make(torch.float64, False))
    return f, leaves, [drawn(stored(leaves[k]), 10 + k) for k in floats(leaves)]


@pytest.mark.parametrize("name", [n for n in BUGS if n not in KINKS])
def test_the_gradient_of_a_sound_twin_is_that_of_its_values(name):
    f, leaves, tangents = sound(name)
    expected = difference(lambda h: weighed(f, along(leaves, tangents, h)), 1e-4)
    found = sum(dot(g, v) for g, v in zip(slopes(f, along(leaves, tangents, 0.0)), tangents, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * (1e-6 if "tiny" in BUGS[name].kind else 1))


@pytest.mark.parametrize("name", KINKS)
def test_the_gradient_of_a_sound_twin_at_a_kink_is_that_of_torch(name):
    f, leaves, _ = sound(name)
    found, expected = slopes(f, [t.clone() for t in leaves]), slopes(KINKS[name], leaves)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [n for n in BUGS if n not in KINKS and BUGS[n].kind != "sparse input"])
def test_the_second_derivative_of_a_sound_twin_is_that_of_its_gradient(name):
    f, leaves, tangents = sound(name)

    def gradient(h, create_graph=False):
        found = slopes(f, along(leaves, tangents, h), create_graph)
        return sum(dot(drawn(g, 20 + k), g) for k, g in enumerate(found))

    point = along(leaves, tangents, 0.0)
    first = slopes(f, point, create_graph=True)
    total = sum(dot(drawn(g, 20 + k), g) for k, g in enumerate(first))
    wanted = [point[k] for k in floats(point)]
    found = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else [None] * len(wanted)
    slope = sum(dot(g, v) for g, v in zip(found, tangents, strict=True) if g is not None)
    torch.testing.assert_close(torch.as_tensor(slope, dtype=torch.float64), difference(gradient, 1e-4), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", [n for n in BUGS if BUGS[n].kind == "forward mode"])
def test_the_tangent_of_a_sound_twin_is_the_slope_of_its_values(name):
    f, leaves, tangents = sound(name)
    _, found = torch.func.jvp(f, tuple(leaves), tuple(tangents))
    expected = difference(lambda h: f(*along(leaves, tangents, h)), 1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_programs_are_of_the_dtype_asked_for_and_made_anew(dtype):
    for bug in BUGS.values():
        if dtype not in bug.dtypes:
            continue
        first, second = bug.make(dtype, True), bug.make(dtype, True)
        assert first.call is not second.call or not isinstance(first.call, nn.Module), bug.name
        for a, b in zip(first.inputs, second.inputs, strict=True):
            assert a is not b and stored(a).equal(stored(b)), bug.name
            assert not a.is_floating_point() or a.dtype == dtype, bug.name
            assert math.prod(a.shape) <= 5000, bug.name
