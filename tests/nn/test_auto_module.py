"""`AutoModule`: a function and its parameters, as a module among others."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.autodiff.custom import custom_vjp
from hesse.core.errors import StructureError, UnsupportedError
from hesse.nn import AutoModule

from .functions_to_import import Power, affine, nested

F64 = {"dtype": torch.float64}
Pair = namedtuple("Pair", "first second")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(5)


def an_affine() -> nn.Module:
    return AutoModule("ExpAffine")(affine, torch.randn(3, 2, **F64), torch.randn(2, **F64))


def a_nested() -> tuple[nn.Module, dict]:
    params = {"layers": [{"w": torch.randn(3, 4, **F64)}, {"w": torch.randn(4, 2, **F64)}], "scale": torch.tensor(0.7, **F64)}
    return AutoModule("Nested")(nested, params=params), params


def test_output_and_gradients_are_the_functions() -> None:
    module, x = an_affine(), torch.randn(5, 3, **F64, requires_grad=True)
    weight, bias = (p.detach().clone().requires_grad_() for p in module.parameters())
    out = torch.exp(torch.stack([row @ weight for row in x]) + bias)
    u = torch.randn(5, 2, **F64)
    expected = torch.autograd.grad(out, (x, weight, bias), u)
    torch.testing.assert_close(module(x), out)
    given = torch.autograd.grad(module(x), (x, module.weight, module.bias), u)
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_it_is_a_module_of_that_name() -> None:
    module = an_affine()
    assert type(module).__name__ == "ExpAffine" and isinstance(module, nn.Module)
    assert AutoModule("ExpAffine") is type(module) and AutoModule("Other") is not type(module)
    assert repr(module) == "ExpAffine(affine, weight=(3, 2), bias=(2,))"
    assert list(module.state_dict()) == ["weight", "bias"]
    assert [name for name, _ in module.named_parameters()] == ["weight", "bias"]
    assert all(p.requires_grad for p in module.parameters())
    assert not module.eval().training and module.train().training
    assert next(module.float().parameters()).dtype == torch.float32


def test_each_instance_has_its_own_function() -> None:
    cls = AutoModule("Unary")
    square, cube = cls(lambda x: x**2), cls(lambda x: x**3)
    x = torch.tensor([2.0, 3.0])
    assert square(x).tolist() == [4.0, 9.0] and cube(x).tolist() == [8.0, 27.0]
    assert copy.deepcopy(square)(x).tolist() == [4.0, 9.0]


@pytest.mark.parametrize(
    ("fn", "given", "expected"),
    [
        (lambda x: x + 1, (), 3.0),
        (lambda x, w: x * (5 if w is None else w), (), 10.0),
        (lambda x, w, b: x * w if b is None else 0, (torch.tensor(4.0),), 8.0),
        (lambda x, w, b=None: x * w if b is None else 0, (torch.tensor(4.0),), 8.0),
        (lambda x, w, b: x + b if w is None else 0, (None, torch.tensor(4.0)), 6.0),
        (lambda x, p=2: x**p, (), 4.0),
        (lambda *all_of_it: all_of_it[0] * len(all_of_it), (torch.tensor(4.0),), 4.0),
        (torch.exp, (), 7.38905609893065),
        (nn.functional.linear, (torch.tensor([[3.0]]),), 6.0),
    ],
)
def test_what_the_function_is_called_with(fn, given, expected) -> None:
    out = AutoModule("Called")(fn, *given)(torch.tensor([2.0]))
    torch.testing.assert_close(out, torch.tensor([expected]))


def test_several_inputs_come_as_a_tuple_and_named_ones_by_name() -> None:
    module = AutoModule("Two")(lambda xs, w, power=1: (xs[0] * w + xs[1]) ** power, torch.tensor(3.0))
    a, b = torch.tensor(2.0), torch.tensor(5.0)
    assert module(a, b).item() == module((a, b)).item() == 11.0
    assert module(a, b, power=2).item() == 121.0
    assert nn.Sequential(AutoModule("Split")(lambda x: (x, x + 3)), module)(a).item() == 11.0


def test_the_users_tensors_are_copied_and_parameters_shared() -> None:
    mine, shared = torch.ones(2), nn.Parameter(torch.ones(2), requires_grad=False)
    module = AutoModule("Held")(lambda x, w, b: x * w + b, mine, shared)
    with torch.no_grad():
        module.weight.zero_()
    assert mine.tolist() == [1.0, 1.0] and not mine.requires_grad
    assert module.bias is shared and not module.bias.requires_grad
    index = AutoModule("Index")(lambda x, w: x[w], torch.tensor([1, 0]))
    assert list(index.state_dict()) == ["weight"] and not list(index.parameters())
    assert index(torch.tensor([3.0, 4.0])).tolist() == [4.0, 3.0]


def test_parameters_as_a_tree() -> None:
    module, params = a_nested()
    assert sorted(module.state_dict()) == ["layers.0.w", "layers.1.w", "scale"]
    assert "Parameters(w=(3, 4))" in repr(module)
    x = torch.randn(5, 3, **F64)
    torch.testing.assert_close(module(x), nested(params, x))
    module(x).sum().backward()
    g = torch.autograd.grad(nested(params, x.requires_grad_()).sum(), x)[0]
    assert g.shape == x.shape and all(p.grad is not None for p in module.parameters())
    f, flat = hesse.functional(module)
    torch.testing.assert_close(f({name: 2 * t for name, t in flat.items()}, x), nested(
        {"layers": [{"w": 2 * t["w"]} for t in params["layers"]], "scale": 2 * params["scale"]}, x))  # fmt: skip


def test_trees_of_any_kind_and_tied_leaves() -> None:
    w = torch.randn(2, 2, **F64)
    module = AutoModule("Tied")(lambda p, x: x @ p.first @ p.second[0] * p.second[1] + p.second[2], params=Pair(w, [w, 3.0, 4]))
    x = torch.randn(5, 2, **F64)
    torch.testing.assert_close(module(x), x @ w @ w * 3 + 4)
    assert [name for name, _ in module.named_parameters()] == ["first", "second.1"]
    with torch.no_grad():
        module.first.mul_(2)
    torch.testing.assert_close(module(x), 4 * (x @ w @ w * 3) + 4)
    assert AutoModule("Bare")(lambda p, x: p * x, params=torch.tensor(2.0))(torch.tensor(3.0)).item() == 6.0


@pytest.mark.filterwarnings("error")
def test_trees_are_copied_and_pickled() -> None:
    module, x = a_nested()[0], torch.randn(5, 3, **F64)
    for again in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        torch.testing.assert_close(again(x), module(x), rtol=0, atol=0)
        with torch.no_grad():
            again.layers.get_submodule("0").w.zero_()
        assert not again(x).any() and module(x).any()


def test_in_sequential_beside_others_it_trains() -> None:
    net = nn.Sequential(nn.Linear(3, 3), an_affine(), AutoModule("Log")(torch.log1p)).double()
    x, y = torch.randn(20, 3, **F64), torch.randn(20, 2, **F64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = ((net(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and len(list(net.parameters())) == 4


class Doubled(torch.autograd.Function):
    """The identity, whose gradient is twice too large on purpose."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return 2 * g


def test_the_functions_own_gradients_are_used() -> None:
    module = AutoModule("Own")(lambda x, w: Doubled.apply(x * w), torch.tensor(3.0, **F64))
    x = torch.tensor([1.0, 4.0], **F64, requires_grad=True)
    gx, gw = torch.autograd.grad(module(x).sum(), (x, module.weight))
    assert gx.tolist() == [6.0, 6.0] and gw.item() == 10.0
    f, params = hesse.functional(module)
    grads = hesse.grad(lambda p: f(p, x.detach()).sum())(params).grads
    assert grads["weight"].item() == 10.0


@custom_vjp
def doubled(x: Tensor) -> Tensor:
    return x.clone()


@doubled.vjp
def _doubled_vjp(g: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return 2 * g


@custom_vjp
def scaled(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight


@scaled.vjp
def _scaled_vjp(g: Tensor, y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return 5 * g, (7 * g * x).sum()


def test_functions_with_rules_of_their_own() -> None:
    x = torch.tensor([1.0, 4.0], **F64, requires_grad=True)
    inside = AutoModule("Inside")(lambda x, w: doubled(x * w), torch.tensor(3.0, **F64))
    assert torch.autograd.grad(inside(x).sum(), x)[0].tolist() == [6.0, 6.0]
    module = pickle.loads(pickle.dumps(AutoModule("Scaled")(scaled, torch.tensor(3.0, **F64))))
    gx, gw = torch.autograd.grad(module(x).sum(), (x, module.weight))
    assert gx.tolist() == [5.0, 5.0] and gw.item() == 35.0
    f, params = hesse.functional(module)
    assert hesse.grad(lambda p: f(p, x.detach()).sum())(params).grads["weight"].item() == 35.0


def test_copies_have_their_own_parameters() -> None:
    module = an_affine()
    module.bias.requires_grad_(False)
    twin = copy.deepcopy(nn.Sequential(module))[0]
    assert type(twin) is type(module) and twin.weight is not module.weight and not twin.bias.requires_grad
    before = module.weight.detach().clone()
    with torch.no_grad():
        twin.weight.add_(1)
    assert torch.equal(module.weight, before)
    module.register_forward_hook(lambda m, a, out: out + 1)
    x = torch.randn(5, 3, **F64)
    torch.testing.assert_close(module(x), affine(x, module.weight, module.bias) + 1)
    tied = nn.ModuleList([module, AutoModule("SameWeight")(affine, module.weight, module.bias)])
    again = copy.deepcopy(tied)
    assert again[0].weight is again[1].weight is not module.weight


@pytest.mark.parametrize(
    "function", [affine, nn.functional.linear, torch.exp, Power(3), partial(torch.pow, exponent=3), nn.GELU()]
)
def test_pickled_and_back(function) -> None:
    weight = torch.randn(2, 3, **F64) if function is nn.functional.linear else None
    module = AutoModule("Kept")(function, weight) if function is not affine else an_affine()
    x = torch.randn(5, 3, **F64)
    again = pickle.loads(pickle.dumps(nn.Sequential(module)))[0]
    assert type(again) is type(module) and again.training is module.training
    torch.testing.assert_close(again(x), module(x), rtol=0, atol=0)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), module(x), rtol=0, atol=0)


LOAD = """
import sys, torch
net = torch.load(sys.argv[1], weights_only=False)
print(type(net[0]).__name__, net(torch.ones(1, 3, dtype=torch.float64)).tolist())
"""


def test_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    (tmp_path / "my_layers.py").write_text(Path(__file__).with_name("functions_to_import.py").read_text())
    sys.path.insert(0, str(tmp_path))
    try:
        import my_layers  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(tmp_path))
    net = nn.Sequential(AutoModule("Fresh")(my_layers.affine, torch.randn(3, 2, **F64), torch.randn(2, **F64)))
    torch.save(net, tmp_path / "net.pt")
    command = [sys.executable, "-c", LOAD, "net.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"Fresh {net(torch.ones(1, 3, **F64)).tolist()}"
    (tmp_path / "my_layers.py").write_text("")
    lost = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "UnsupportedError" in lost.stderr and "'affine' of 'my_layers'" in lost.stderr


def test_what_cannot_be_imported_is_refused_when_it_is_saved() -> None:
    def local(x: Tensor) -> Tensor:
        return x

    for function, name in ((lambda x: x, "<lambda>"), (local, "local"), (partial(lambda x, p: x, p=2), "partial")):
        with pytest.raises(UnsupportedError, match=r"another process can import") as caught:
            pickle.dumps(nn.Sequential(AutoModule("Local")(function)))
        assert name in caught.value.found and "state_dict" in caught.value.remedy


def test_exported_and_compiled() -> None:
    module, _ = a_nested()
    net = nn.Sequential(an_affine(), nn.Linear(2, 3).double(), module)
    x = torch.randn(5, 3, **F64)
    for strict in (False, True):
        program = torch.export.export(net, (x,), strict=strict)
        torch.testing.assert_close(program.module()(x), net(x))
        assert set(program.state_dict) == set(net.state_dict())
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))


def test_hesse_takes_it_as_any_module() -> None:
    net = nn.Sequential(nn.Linear(3, 3), an_affine()).double()
    x, y = torch.randn(5, 3, **F64), torch.randn(5, 2, **F64)
    rows = []
    for n in range(5):
        grads = torch.autograd.grad(((net(x[n : n + 1]) - y[n : n + 1]) ** 2).sum(), list(net.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    J = hesse.parameter_jacobian(net, nn.MSELoss(reduction="sum"), (x, y))
    torch.testing.assert_close(J.dense(), torch.stack(rows), rtol=1e-12, atol=1e-12)
    blocks = hesse.kfac(net, nn.MSELoss(), (x, y))
    assert set(blocks.kinds) == {"0.weight", "0.bias", "1.weight", "1.bias"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AutoModule(affine), "makes? a class of that name"),
        (lambda: AutoModule("not a name"), "Python name"),
        (lambda: AutoModule("class"), "Python name"),
        (lambda: AutoModule("A")(3), "takes a function"),
        (lambda: AutoModule("A")(lambda: 1), "calls its function with input"),
        (lambda: AutoModule("A")(lambda x: 1, None, torch.ones(1)), "input, weight, bias"),
        (lambda: AutoModule("A")(affine, torch.ones(1), params={}), "beside it"),
        (lambda: AutoModule("A")(affine, "w"), "'weight' becomes a parameter"),
        (lambda: AutoModule("A")(affine, params={"a": {"forward": torch.ones(1)}}), "'a.forward'"),
        (lambda: AutoModule("A")(affine, params={"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}), "taken"),
        (lambda: AutoModule("A")(affine, params={"": torch.ones(1), "params": torch.ones(1)}), "'params', which is taken"),
        (lambda: AutoModule("A")(affine, params={"a": {"": torch.ones(1)}}), "taken or empty"),
    ],
)
def test_refused(make, words) -> None:
    with pytest.raises(StructureError, match=words):
        make()
