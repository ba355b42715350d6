"""`propagated_diagonal` against recursions written by hand, against Jacobians squared, and where it is exact."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.core.errors import MixedSamplesError, NondeterministicError, NonScalarError, StructureError, UnsupportedError
from hesse.curvature.propagated import propagated_diagonal

from ..autodiff.programs import REAL, hessian_by_loops, seeded
from .chains import CHAINS, Apply, LocallyConnected, PartialConvolution


def _half_squares(output: Tensor, target: Any) -> Tensor:
    return 0.5 * (output**2).sum()


def _double(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for p in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            p.copy_(0.2 + torch.rand(p.shape, generator=generator, dtype=REAL) if p.ndim < 2 else
                    torch.randn(p.shape, generator=generator, dtype=REAL) / 2)  # fmt: skip
    return module


def by_jacobians(layers: Sequence[nn.Module], x: Tensor, h: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The recursion, a layer at a time, with the squared entries of each layer's dense Jacobians."""
    inputs = [x]
    for layer in layers:
        inputs.append(layer(inputs[-1]).detach())
    found: dict[str, Tensor] = {}
    for index in reversed(range(len(layers))):
        layer, z = layers[index], inputs[index]
        for name, p in layer.named_parameters():

            def by_weight(value: Tensor, layer: nn.Module = layer, name: str = name, z: Tensor = z) -> Tensor:
                return torch.func.functional_call(layer, {name: value}, (z,))

            J: Any = torch.autograd.functional.jacobian(by_weight, p.detach())
            found[f"{index}.{name}"] = torch.tensordot(h, J**2, h.ndim)
        J = torch.autograd.functional.jacobian(layer, z)
        h = torch.tensordot(h, J**2, h.ndim)
    return found, h


@pytest.mark.parametrize("name", CHAINS)
def test_chains_against_squared_jacobians(name: str) -> None:
    make, shape = CHAINS[name]
    layers = [_double(layer, seed) for seed, layer in enumerate(make())]
    model, x = nn.Sequential(*layers), seeded(*shape)
    h = torch.ones_like(model(x)).detach()
    expected, _ = by_jacobians(layers, x, h)
    got = propagated_diagonal(model, _half_squares, (x, x))
    assert list(got) == [n for n, _ in model.named_parameters()]
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-10, atol=1e-12)
        assert not got[key].requires_grad


@pytest.mark.parametrize("name", ["mlp", "convolutions", "transposed", "three axes", "locally connected", "partial"])
def test_diagonals_by_the_input(name: str) -> None:
    make, shape = CHAINS[name]
    layers = [_double(layer, seed) for seed, layer in enumerate(make())]
    model, x = nn.Sequential(*layers), seeded(*shape)
    _, expected = by_jacobians(layers, x, torch.ones_like(model(x)).detach())
    got = propagated_diagonal((lambda p, _: model(p["x"]), {"x": x}), _half_squares, (x, x))
    torch.testing.assert_close(got["x"], expected, rtol=1e-10, atol=1e-12)


LINEAR: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Linear": (nn.Linear(5, 3), (4, 5)),
    "Conv2d": (nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=1, dilation=(2, 1), groups=2), (2, 2, 6, 5)),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 3, (2, 3), stride=2), (2, 2, 3, 4)),
    "local": (LocallyConnected(), (3, 2, 3, 4)),
    "map": (PartialConvolution(2, 3, 2, stride=2), (2, 2, 5, 4)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_module_diag_hessian(name: str) -> None:
    """hessian.lua: for modules linear in input and weights, the sum over outputs k of ``(dy_k / dx_i)**2`` is exact for
    half the squared norm of the output."""
    module, x = _double(LINEAR[name][0]), seeded(*LINEAR[name][1])
    params = {n: p.detach() for n, p in module.named_parameters()}
    for key, point in {**params, "input": x}.items():

        def output(t: Tensor, key: str = key) -> Tensor:
            return module(t) if key == "input" else torch.func.functional_call(module, {key: t}, (x,))

        exact = hessian_by_loops(lambda t, output=output: 0.5 * (output(t) ** 2).sum(), point)
        diagonal = exact.reshape(point.numel(), -1).diagonal().reshape(point.shape)
        J: Any = torch.autograd.functional.jacobian(output, point)
        torch.testing.assert_close(diagonal, (J**2).flatten(0, -1 - point.ndim).sum(0))
        got = propagated_diagonal((lambda p, _, output=output: output(p["t"]), {"t": point}), _half_squares, (x, x))
        torch.testing.assert_close(got["t"], diagonal)


def test_a_network_by_hand() -> None:
    """Becker and LeCun's formulas in NumPy, sample by sample, in both variants."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Sigmoid()).double()
    x, y = seeded(6, 4), seeded(6, 3, seed=1)
    W1, b1, W2, b2 = (p.detach().numpy() for p in model.parameters())
    for full in (False, True):
        sums = [np.zeros_like(p) for p in (W1, b1, W2, b2)]
        for a0, target in zip(x.numpy(), y.numpy(), strict=True):
            a1 = np.tanh(W1 @ a0 + b1)
            a2 = 1 / (1 + np.exp(-(W2 @ a1 + b2)))
            g, h = 2 * (a2 - target) / 18, np.full(3, 2 / 18)
            first, second = a2 * (1 - a2), a2 * (1 - a2) * (1 - 2 * a2)
            h = first**2 * h + (second * g if full else 0)
            g = first * g
            sums[2] += np.outer(h, a1**2)
            sums[3] += h
            h, g = (W2**2).T @ h, W2.T @ g
            first, second = 1 - a1**2, -2 * a1 * (1 - a1**2)
            h = first**2 * h + (second * g if full else 0)
            sums[0] += np.outer(h, a0**2)
            sums[1] += h
        got = propagated_diagonal(model, nn.MSELoss(), (x, y), curvature="full" if full else "gauss-newton")
        for found, expected in zip(got.values(), sums, strict=True):
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-14)


def _exact(model: nn.Module, loss: Callable[..., Tensor], x: Tensor, y: Tensor, name: str, gauss_newton: bool) -> Tensor:
    """The exact diagonal by one parameter from dense matrices."""
    start = dict(model.named_parameters())[name].detach()

    def output(t: Tensor) -> Tensor:
        return torch.func.functional_call(model, {name: t}, (x,))

    if not gauss_newton:
        H = hessian_by_loops(lambda t: loss(output(t), y), start).reshape(start.numel(), -1)
        return H.diagonal().reshape(start.shape)
    out = output(start).detach()
    H = hessian_by_loops(lambda o: loss(o, y), out).reshape(out.numel(), -1)
    J: Any = torch.autograd.functional.jacobian(output, start)
    J = J.reshape(out.numel(), -1)
    return (J.mT @ H @ J).diagonal().reshape(start.shape)


def test_two_linear_layers_are_exact() -> None:
    model = _double(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    x, y = seeded(6, 4), seeded(6, 3, seed=1)
    for loss in (nn.MSELoss(), nn.MSELoss(reduction="sum"), lambda o, t: torch.cosh(o - t).mean()):
        got = propagated_diagonal(model, loss, (x, y))
        for name in got:
            torch.testing.assert_close(got[name], _exact(model, loss, x, y, name, True))
    full = propagated_diagonal(model, nn.MSELoss(), (x, y), curvature="full")
    for name in full:
        torch.testing.assert_close(full[name], _exact(model, nn.MSELoss(), x, y, name, False))
    classes = torch.tensor([0, 2, 1, 1, 0, 2])
    got = propagated_diagonal(model, nn.CrossEntropyLoss(), (x, classes))
    for name in ("2.weight", "2.bias"):
        torch.testing.assert_close(got[name], _exact(model, nn.CrossEntropyLoss(), x, classes, name, True))
    assert not torch.allclose(got["0.weight"], _exact(model, nn.CrossEntropyLoss(), x, classes, "0.weight", True), rtol=1e-2)
    deeper = _double(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 3)))
    off = propagated_diagonal(deeper, nn.MSELoss(), (x, y))["0.weight"]
    assert not torch.allclose(off, _exact(deeper, nn.MSELoss(), x, y, "0.weight", True), rtol=1e-2)


LOSSES: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
    "weighted classes": (nn.CrossEntropyLoss(torch.tensor([0.3, 2.0, 1.0], dtype=REAL), ignore_index=1),
                         torch.tensor([0, 1, 2, 2])),
    "plain classes": (lambda o, t: F.cross_entropy(o, t), torch.tensor([0, 1, 2, 2])),
    "smooth": (nn.CrossEntropyLoss(label_smoothing=0.2), torch.tensor([0, 1, 2, 2])),
    "binary": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0], dtype=REAL)), seeded(4, 3).sigmoid()),
    "poisson": (nn.PoissonNLLLoss(), seeded(4, 3).exp()),
    "weighted squares": (lambda o, t: (torch.tensor([1.0, 2.0, 5.0], dtype=REAL) * (o - t) ** 2).sum(), seeded(4, 3)),
    "squared distances": (lambda o, t: ((o - t).norm(dim=1) ** 3).mean(), seeded(4, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_the_diagonal_by_the_output_is_exact(name: str) -> None:
    loss, targets = LOSSES[name]
    x = seeded(4, 3, seed=9)
    model = _double(nn.Linear(3, 3))
    exact = hessian_by_loops(lambda o: loss(o, targets), model(x).detach()).reshape(12, 12).diagonal().reshape(4, 3)
    for curvature in ("gauss-newton", "full"):
        got = propagated_diagonal(model, loss, (x, targets), curvature=curvature)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(got["bias"], exact.sum(0))
        torch.testing.assert_close(got["weight"], exact.mT @ x**2)


def test_absolute_errors_follow_the_convention() -> None:
    model, x = _double(nn.Linear(3, 2)), seeded(4, 3)
    y = model(x).detach().clone()
    y[1:] += 1
    for loss, normalizer in ((nn.L1Loss(), 8), (F.l1_loss, 8), (nn.L1Loss(reduction="sum"), 1)):
        got = propagated_diagonal(model, loss, (x, y))
        torch.testing.assert_close(got["bias"], torch.full((2,), 3 / normalizer, dtype=REAL))
        torch.testing.assert_close(got["weight"], (x[1:] ** 2).sum(0).expand(2, 3) / normalizer)
        assert not propagated_diagonal(model, loss, (x, y), curvature="full")["weight"].any()


def test_paths_that_join_add_up() -> None:
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x)
            return z + 2 * torch.tanh(self.second(z))

    model, x = Residual().double(), seeded(4, 3)
    slope = 2 * (1 - torch.tanh(model.second(model.first(x))).detach() ** 2)
    h = 1 + slope**2 @ model.second.weight.detach() ** 2
    got = propagated_diagonal(model, _half_squares, (x, x))
    torch.testing.assert_close(got["first.bias"], h.sum(0))
    torch.testing.assert_close(got["first.weight"], h.mT @ x**2)
    torch.testing.assert_close(got["second.bias"], (slope**2).sum(0))
    tied = nn.Sequential(OrderedDict(a=nn.Linear(3, 3), b=nn.Linear(3, 3))).double()
    tied.b.weight = tied.a.weight
    W = tied.a.weight.detach()
    both = propagated_diagonal(tied, _half_squares, (x, x))["a.weight"]
    z = tied.a(x).detach()
    ones = torch.ones(4, 3, dtype=REAL)
    torch.testing.assert_close(both, ones.mT @ z**2 + (ones @ W**2).mT @ x**2)


def test_functions_of_a_value_and_itself() -> None:
    """Elementwise programs count as one function, in both variants; with a linear layer inside, "full" refuses."""
    x = seeded(5, 3)
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda t: t * t,
        lambda t: t - torch.tanh(t),
        lambda t: t * torch.sigmoid(t) + t**2 / (1 + t.abs()),
        lambda t: torch.where(t > 0, t.exp(), 1 - t),
        lambda t: (torch.maximum(t, -t) + 2).log() * 3,
    ]
    for function in functions:

        def output(p: Tensor, function: Callable[[Tensor], Tensor] = function) -> Tensor:
            return function(x * p)

        p = torch.tensor([0.5, -1.2, 2.0], dtype=REAL)
        for curvature in ("gauss-newton", "full"):
            got = propagated_diagonal((lambda q, _, f=output: f(q["p"]), {"p": p}), _half_squares, (x, x), curvature=curvature)  # pyright: ignore[reportArgumentType]
            if curvature == "full":
                expected = hessian_by_loops(lambda t, f=output: 0.5 * (f(t) ** 2).sum(), p).diagonal()
            else:
                J: Any = torch.autograd.functional.jacobian(output, p)
                expected = (J**2).sum((0, 1))
            torch.testing.assert_close(got["p"], expected)
    layer = _double(nn.Linear(3, 3))

    def gate(q: dict[str, Tensor], _: Any) -> Tensor:
        return (x * q["p"]) * layer(x * q["p"])

    propagated_diagonal((gate, {"p": x[0]}), _half_squares, (x, x))
    with pytest.raises(UnsupportedError, match="MulBackward0 joins a value with a function of that value"):
        propagated_diagonal((gate, {"p": x[0]}), _half_squares, (x, x), curvature="full")


def test_selections_leave_the_rest_alone() -> None:
    model = _double(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 1, bias=False)))
    x, y = seeded(6, 4), seeded(6, 1, seed=1)
    model[3].weight.requires_grad_(False)
    whole = propagated_diagonal(model, nn.MSELoss(), (x, y))
    assert list(whole) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    part = propagated_diagonal(model, nn.MSELoss(), (x, y), params=["2.bias", "0.weight"])
    for name in ("2.bias", "0.weight"):
        torch.testing.assert_close(part[name], whole[name])
    named = propagated_diagonal(Named(model), nn.MSELoss(), ({"x": x}, y), output=lambda o: o["y"])
    torch.testing.assert_close(named["inner.0.weight"], whole["0.weight"])
    unused = Named(model)
    unused.spare = nn.Linear(2, 2)
    assert not propagated_diagonal(unused, nn.MSELoss(), ({"x": x}, y), output=lambda o: o["y"])["spare.weight"].any()
    assert all(p.grad is None for p in model.parameters())


class Named(nn.Module):
    """A model with keyword inputs and a dict as output."""

    spare: nn.Module

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.inner(x)}


def test_scaled_products() -> None:
    """``beta c + alpha a b`` and products with vectors, which modules do not use."""
    a, b = seeded(4, 3), seeded(3, 2, seed=1)
    params = {"c": seeded(2, seed=2), "a": seeded(3, 3, seed=3), "v": seeded(2, seed=4)}

    def forward(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.addmm(p["c"], x @ p["a"], b, beta=3, alpha=0.5) @ p["v"]

    z = torch.addmm(params["c"], a @ params["a"], b, beta=3, alpha=0.5)
    h = (params["v"] ** 2).expand(4, 2)
    got = propagated_diagonal((forward, params), _half_squares, (a, a))
    torch.testing.assert_close(got["v"], (z**2).sum(0))
    torch.testing.assert_close(got["c"], 9 * h.sum(0))
    torch.testing.assert_close(got["a"], (a**2).mT @ (0.25 * h @ (b**2).mT))
    batched = seeded(2, 4, 3, seed=5)
    c = seeded(2, 1, 3, seed=6)
    pair = (lambda p, x: torch.baddbmm(p["c"], x, p["w"], beta=2, alpha=3), {"c": c, "w": seeded(2, 3, 3)})
    got = propagated_diagonal(pair, _half_squares, (batched, batched))
    torch.testing.assert_close(got["w"], 9 * (batched**2).sum(1)[:, :, None].expand(2, 3, 3))
    torch.testing.assert_close(got["c"], torch.full((2, 1, 3), 16.0, dtype=REAL))


def test_tokens() -> None:
    model = _double(nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Tanh(), nn.Linear(3, 2)))
    tokens = torch.tensor([[1, 2, 0], [1, 1, 4]])
    table, weight = model[0].weight.detach(), model[2].weight.detach()
    expected = torch.zeros(5, 3, dtype=REAL)
    for token in tokens.flatten().tolist():
        expected[token] += (1 - torch.tanh(table[token]) ** 2) ** 2 * (weight**2).sum(0) * (token != 0)
    got = propagated_diagonal(model, _half_squares, (tokens, tokens))
    torch.testing.assert_close(got["0.weight"], expected)


REFUSED: dict[str, tuple[nn.Module, type[Exception], str]] = {
    "layer norm": (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), UnsupportedError, "NativeLayerNormBackward0"),
    "softmax": (nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), UnsupportedError, "SoftmaxBackward0"),
    "batch statistics": (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(), MixedSamplesError, "batch normalization"),
    "dropout": (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3)).train(), NondeterministicError, "'1'"),
    "in place": (nn.Sequential(nn.Linear(4, 4), Apply(lambda t: t.index_put((torch.tensor([0]),), t[1:2]))), UnsupportedError,
                 "IndexPutBackward0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name: str) -> None:
    model, error, text = REFUSED[name]
    x = torch.randn(3, 4)
    with pytest.raises(error, match=text):
        propagated_diagonal(model, _half_squares, (x, x))


def test_refusals() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(StructureError, match="curvature is"):
        propagated_diagonal(model, _half_squares, (x, x), curvature="newton")  # pyright: ignore[reportArgumentType]
    with pytest.raises(NonScalarError):
        propagated_diagonal(model, nn.MSELoss(reduction="none"), (x, x[:, :2]))
    with pytest.raises(UnsupportedError, match="reads the parameter 'bias'"):
        propagated_diagonal(model, lambda o, t: (o**2).sum() + (model.bias**2).sum(), (x, x))
    with pytest.raises(MixedSamplesError):
        propagated_diagonal(model, lambda o, t: (o.sum() - 1) ** 2, (x, x))
    frozen = nn.Sequential(nn.LayerNorm(3, elementwise_affine=False), nn.Linear(3, 2))
    assert propagated_diagonal(frozen, _half_squares, (x, x))["1.bias"].tolist() == [
        4,
        4,
    ]  # no rule is needed before parameters
