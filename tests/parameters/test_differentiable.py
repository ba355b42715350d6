"""Results with `create_graph=True`: their derivatives by the parameters against finite differences in float64."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.core.errors import StructureError
from tests.parameters import oracle
from tests.parameters.fingerprint import changes, fingerprint
from tests.parameters.special import Free, L, P
from tests.parameters.varied import EVERY, make, targets

pytestmark = pytest.mark.filterwarnings("ignore")
SUM = nn.MSELoss(reduction="sum")
STEP, TOLERANCE = 1e-5, 3e-5

QUANTITIES: dict[str, Callable[[hesse.ParameterJacobian], Any]] = {
    "norms": lambda J: J.norms(),
    "norms by layer": lambda J: torch.stack(list(J.norms("layer").values())),
    "norms by parameter": lambda J: torch.stack(list(J.norms("parameter").values())),
    "squares": lambda J: J.in_space.ravel(J.sum_of_squares()),
    "mean": lambda J: J.in_space.ravel(J.mean()),
    "variance": lambda J: J.in_space.ravel(J.variance()),
    "gram": lambda J: J.gram(),
    "gram with some": lambda J: J.select([2, 0]).gram(J),
    "clipped": lambda J: J.in_space.ravel(J.clipped_sum(1.5)),
    "clipped by layer": lambda J: J.in_space.ravel(J.clipped_sum(1.3, per_layer=True)),
    "rows by name": lambda J: torch.cat([part.reshape(-1) for part in J.as_dict().values()]),
    "rows of some": lambda J: torch.cat([part.reshape(-1) for part in J.select([2, 0]).as_dict().values()]),
    "product": lambda J: J.flat @ torch.linspace(-1, 1, J.in_space.dim, dtype=torch.float64),
    "weighted sum": lambda J: J.in_space.ravel(J.weighted_sum(torch.linspace(1, 3, 3, dtype=torch.float64))),
}
UNLIKE_DIFFERENCES = {  # differences see what autograd leaves out by convention, or PyTorch has no second derivative
    "tied, with padding", "detached between", "weights of a bag", "distances to parameters",
    "sparse gradient", "routing past the parameters",
}  # fmt: skip


def _mix(value: Tensor) -> Tensor:
    return (value * torch.cos(torch.arange(value.numel(), dtype=value.dtype)).reshape(value.shape)).sum()


def _move(params: list[nn.Parameter], direction: list[Tensor], step: float) -> None:
    with torch.no_grad():
        for p, v in zip(params, direction, strict=True):
            p.add_(v, alpha=step)


def _require(model: nn.Module, jacobian: Callable[..., hesse.ParameterJacobian], names: Any = QUANTITIES) -> None:
    """Directional derivatives of mixtures of every quantity, against central differences of the plain quantities."""
    params = oracle.trainable(model)
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in params]
    J = jacobian(create_graph=True)
    found = {}
    for name in names:
        grads = torch.autograd.grad(_mix(QUANTITIES[name](J)), params, allow_unused=True, retain_graph=True)
        found[name] = sum(float((g * v).sum()) for g, v in zip(grads, direction, strict=True) if g is not None)
    values: dict[tuple[str, int], float] = {}
    for sign in (1, -1):
        _move(params, direction, sign * STEP)
        moved = jacobian()
        values |= {(name, sign): float(_mix(QUANTITIES[name](moved))) for name in names}
        _move(params, direction, -sign * STEP)
    for name in names:
        expected = (values[name, 1] - values[name, -1]) / (2 * STEP)
        assert abs(found[name] - expected) < TOLERANCE * max(1.0, abs(expected), abs(values[name, 1])), name


@pytest.mark.parametrize("name", [name for name in EVERY if name not in UNLIKE_DIFFERENCES])
def test_derivatives_of_every_quantity(name: str) -> None:
    model, inputs = make(name, 3)
    y = targets(model, inputs)
    _require(model, lambda **options: hesse.parameter_jacobian(model, SUM, (inputs, y), **options))


OUTPUTS = ["norms", "gram", "squares", "clipped", "variance", "rows by name"]


@pytest.mark.parametrize("name", ["positions", "grouped convolution", "self-attention", "low rank", "LSTM", "disjoint slices"])
def test_derivatives_of_output_rows(name: str) -> None:
    model, inputs = make(name, 3)

    def jacobian(**options: Any) -> hesse.ParameterJacobian:
        return hesse.parameter_jacobian(model, None, (inputs, None), outputs=[2, 0], **options)

    _require(model, jacobian, OUTPUTS)


MORE_LAYERS: dict[str, tuple[nn.Module, Tensor]] = {
    "max bag": (nn.EmbeddingBag(6, 4, mode="max"), torch.randint(0, 6, (3, 5))),
    "sum bag": (nn.EmbeddingBag(6, 4, mode="sum"), torch.randint(0, 6, (3, 5))),
    "dilated convolution": (nn.Conv2d(4, 3, 2, dilation=2, padding="same"), torch.randn(3, 4, 5, 4).double()),
    "strided slices of channels": (nn.Conv1d(2, 3, 2), torch.randn(3, 6, 5).double()[:, ::3]),
    "an expanded image": (nn.Conv1d(4, 3, 3), torch.randn(3, 4, 1).double().expand(3, 4, 6)),
    "channels last": (
        nn.Conv2d(4, 3, 2, bias=False).to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
        torch.randn(3, 5, 4, 4).double().permute(0, 3, 2, 1),
    ),
    "volumes": (nn.Conv3d(2, 4, 2, groups=2), torch.randn(3, 2, 3, 3, 2).double()),
    "transposed convolution": (
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2, output_padding=1),
        torch.randn(3, 4, 3, 2).double(),
    ),
    "layer norm over two axes": (nn.LayerNorm([4, 5]), torch.randn(3, 2, 4, 5).double()),
    "batch norm of a vector": (nn.BatchNorm1d(5), torch.randn(3, 5).double()),
    "GLU": (nn.Sequential(L(5, 8), nn.GLU()), torch.randn(3, 5).double()),
    "transformer layer": (nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True), torch.randn(3, 5, 4).double()),
    "transformer layer, norm first": (
        nn.TransformerEncoderLayer(4, 2, 6, 0.0, norm_first=True, batch_first=True),
        torch.randn(3, 5, 4).double(),
    ),
    "recurrent, relu": (
        Free(lambda s, x: s.r(x)[0], r=nn.RNN(5, 4, nonlinearity="relu", batch_first=True)),
        torch.randn(3, 4, 5).double(),
    ),
    "LSTM with projections": (
        Free(lambda s, x: s.r(x)[0], r=nn.LSTM(5, 4, proj_size=2, batch_first=True)),
        torch.randn(3, 4, 5).double(),
    ),
    "local response": (nn.Sequential(nn.Conv1d(4, 3, 2), nn.LocalResponseNorm(2)), torch.randn(3, 4, 5).double()),
    "addbmm": (
        Free(lambda s, x: torch.addbmm(s.b, x.unsqueeze(0).expand(2, -1, -1), s.w, beta=0.5, alpha=2), b=P(4), w=P(2, 5, 4)),
        torch.randn(3, 5).double(),
    ),
    "a vector": (
        Free(lambda s, x: torch.addmv(s.b, x, s.w, beta=0.5, alpha=2).unsqueeze(1), b=P(1), w=P(5)),
        torch.randn(3, 5).double(),
    ),
    "picked": (
        Free(lambda s, i: s.w[i].tanh() * s.v[:, i[0]].sum() + s.u.take(i).unsqueeze(-1), w=P(6, 4), v=P(2, 6), u=P(6)),
        torch.randint(0, 6, (1, 5)).expand(3, 5),
    ),
}


@pytest.mark.parametrize("name", MORE_LAYERS)
def test_derivatives_of_more_layers(name: str) -> None:
    layer, x = MORE_LAYERS[name]
    model = Free(lambda s, x: s.head(torch.tanh(s.layer(x)).flatten(1)), layer=layer, head=nn.LazyLinear(2)).double().eval()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model(x)
        oracle.randomize(model)
    _require(model, lambda **options: hesse.parameter_jacobian(model, SUM, (x, torch.ones(3, 2).double()), **options))


LOSSES: dict[str, tuple[Callable[[Any, Any], Tensor], Any]] = {
    "cross entropy": (
        nn.CrossEntropyLoss(torch.tensor([0.3, 2.0, 1.0]).double(), label_smoothing=0.1),
        torch.tensor([0, 2, 1]),
    ),
    "cross entropy of probabilities": (nn.CrossEntropyLoss(), torch.rand(3, 3).double()),
    "logistic": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 1.0, 0.5]).double()), torch.rand(3, 3).double()),
    "Huber": (nn.HuberLoss(delta=0.3), torch.randn(3, 3).double()),
    "Poisson": (nn.PoissonNLLLoss(full=True), torch.rand(3, 3).double()),
    "one of mine": (lambda out, y: (torch.logsumexp(out, 1) * y).exp().mean(), torch.rand(3).double()),
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_derivatives_through_losses(name: str) -> None:
    loss, y = LOSSES[name]
    model, x = make("residual", 3)
    _require(
        model, lambda **options: hesse.parameter_jacobian(model, loss, (x, y), **options), ["norms", "gram", "rows by name"]
    )


def test_weight_normalization_called_as_a_function() -> None:
    model = Free(lambda s, x: F.linear(x, torch._weight_norm(s.v, s.g, 0)).tanh(), v=P(3, 5), g=P(3, 1)).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    _require(
        model, lambda **options: hesse.parameter_jacobian(model, SUM, (x, torch.ones(3, 3).double()), **options), ["norms"]
    )


def test_dense_of_numbers() -> None:
    model, x = make("numbers", 3)
    y = targets(model, x)
    rows = hesse.parameter_jacobian(model, SUM, (x, y), create_graph=True).dense()
    assert oracle.difference(rows.detach(), hesse.parameter_jacobian(model, SUM, (x, y)).dense()) < 1e-12


def test_no_warning_is_given() -> None:
    model = nn.Sequential(L(5, 4), nn.Tanh(), L(4)).double()
    x, before = torch.randn(3, 5, dtype=torch.float64), torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(action="error"):
            hesse.parameter_jacobian(model, SUM, (x, torch.ones(3, 3).double()), create_graph=True)
    finally:
        torch.set_warn_always(before)


def _loop_of_squares(model: nn.Module, inputs: Any, y: Tensor) -> Tensor:
    """The squared norms of all rows, differentiable, by a loop of plain autograd."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(y)):
        loss = SUM(oracle.run(model, oracle.sample(inputs, i)), y[i : i + 1])
        grads = torch.autograd.grad(loss, oracle.trainable(model), create_graph=True, allow_unused=True)
        for g in grads:
            total = total if g is None else total + (g.to_dense() if g.is_sparse else g).square().sum()
    return total


CONVENTIONS = [
    *("tied, with padding", "detached between", "positions", "a table in three roles", "low rank", "in place"),
    *("sparse gradient", "routing past the parameters"),
]


@pytest.mark.parametrize("name", CONVENTIONS)
def test_derivatives_are_those_of_a_loop_of_autograd(name: str) -> None:
    model, inputs = make(name, 3)
    y, params = targets(model, inputs), oracle.trainable(model)
    J = hesse.parameter_jacobian(model, SUM, (inputs, y), create_graph=True)
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(J.norms().square().sum(), params, **options)
    expected = torch.autograd.grad(_loop_of_squares(model, inputs, y), params, **options)
    for a, b in zip(found, expected, strict=True):
        assert oracle.difference(*((g.to_dense() if g.is_sparse else g) for g in (a, b))) < 1e-10


@pytest.mark.parametrize("name", ["positions", "low rank", "numbers"])
def test_dense_and_dict_agree(name: str) -> None:
    model, x = make(name, 3)
    y = targets(model, x)
    J, K = (hesse.parameter_jacobian(model, SUM, (x, y), create_graph=attached) for attached in (True, False))
    for key, part in J.as_dict().items():
        assert part.requires_grad and oracle.difference(part.detach(), K.as_dict()[key]) < 1e-12
        assert not K.as_dict()[key].requires_grad
    with pytest.raises(StructureError, match="writes numbers"):
        J.dense(out=torch.empty(J.shape, dtype=torch.float64))


def test_a_fused_recurrence_gives_way_in_float32() -> None:
    model = Free(lambda s, x: s.head(s.layer(x)[0].sum(1)), layer=nn.LSTM(5, 4, batch_first=True), head=L(4))
    x, y = torch.randn(3, 4, 5), torch.randn(3, 3)
    value = hesse.parameter_jacobian(model, SUM, (x, y), create_graph=True).norms().square().sum()
    found = torch.autograd.grad(value, list(model.parameters()))
    model, x, y = model.double(), x.double(), y.double()
    rows = [oracle.run(model, x[i : i + 1]).sub(y[i]).square().sum() for i in range(3)]
    grads = [torch.autograd.grad(row, list(model.parameters()), create_graph=True) for row in rows]
    total = torch.stack([g.square().sum() for row in grads for g in row]).sum()
    for a, b in zip(found, torch.autograd.grad(total, list(model.parameters())), strict=True):
        assert float((a.double() - b).norm()) < 1e-4 * float(b.norm()) + 1e-6


@pytest.mark.parametrize("name", ["positions", "self-attention", "weight_norm", "repeated tokens"])
def test_a_penalty_on_norms_lowers_them(name: str) -> None:
    model, x = make(name, 4)
    y = targets(model, x)
    optimizer, values = torch.optim.SGD(model.parameters(), lr=1e-5), []
    for _ in range(8):
        penalty = hesse.parameter_jacobian(model, SUM, (x, y), create_graph=True).norms().square().mean()
        optimizer.zero_grad()
        penalty.backward()
        values.append(float(penalty.detach()))
        optimizer.step()
    assert all(after < before for before, after in itertools.pairwise(values))


def test_gradients_of_the_user_are_filled_by_backward_only() -> None:
    model, x = make("positions", 3)
    y = targets(model, x)
    params = oracle.trainable(model)
    hooks = []
    params[0].register_hook(lambda g: hooks.append(g))
    before = fingerprint(model)
    J = hesse.parameter_jacobian(model, SUM, (x, y), create_graph=True)
    for name in QUANTITIES:
        QUANTITIES[name](J)
    assert changes(before, fingerprint(model)) == [] and hooks == []
    J.norms().sum().backward(retain_graph=True)
    first = [p.grad.clone() for p in params if p.grad is not None]
    assert len(hooks) == 1 and any(bool(g.any()) for g in first)
    J.gram().trace().backward(retain_graph=True)  # the same Jacobian once more: gradients add up
    second = torch.autograd.grad(J.norms().square().sum(), params)
    for p, g, more in zip(params, first, second, strict=True):
        assert p.grad is not None and oracle.difference(p.grad - g, more) < 1e-10
    again = hesse.parameter_jacobian(model, SUM, (x, y)).norms()
    assert not again.requires_grad


def test_frozen_parameters_and_inputs_with_gradients() -> None:
    model, x = make("frozen", 3)
    x.requires_grad_()
    y = targets(model, x)
    J = hesse.parameter_jacobian(model, SUM, (x, y), create_graph=True)
    value = J.norms().square().sum()
    (found,) = torch.autograd.grad(value, x, retain_graph=True)
    v = torch.randn_like(x)
    with torch.no_grad():
        ends = [hesse.parameter_jacobian(model, SUM, (x + s * STEP * v, y)).norms().square().sum() for s in (1, -1)]
    expected = float(ends[0] - ends[1]) / (2 * STEP)
    assert abs(float((found * v).sum()) - expected) < 1e-5 * max(1.0, abs(expected))
    value.backward()
    for p in model.parameters():
        assert p.requires_grad or p.grad is None
