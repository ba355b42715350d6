"""The Gauss-Newton matrix of odd outputs, losses that are not convex or mix samples, in odd contexts and dtypes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import hesse
from hesse.core.errors import (
    DataError,
    MixedSamplesError,
    StructureError,
    SymmetryError,
    UnsupportedError,
)
from hesse.curvature.gauss_newton import GaussNewton
from hesse.operators.division import Division
from tests.curvature import references, zoo
from tests.parameters import oracle
from tests.parameters.special import Free, L

WEIGHT = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
OPTIONS: dict[str, Any] = {"weight": WEIGHT, "ignore_index": 1, "label_smoothing": 0.1}
LOSS = nn.CrossEntropyLoss(**OPTIONS)


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Any, Callable[[], Tensor], Any]] = {
    "[n]": (lambda o: o[:, 0], nn.MSELoss(), lambda: zoo.values(), None),
    "[n, 1]": (lambda o: o[:, :1], nn.BCEWithLogitsLoss(), lambda: zoo.tokens(1, below=2).double(), None),
    "one class": (lambda o: o[:, :1], nn.MSELoss(), lambda: zoo.values(1), None),
    "[n, c, t]": (lambda o: torch.stack([o, o**2], 2), nn.CrossEntropyLoss(), lambda: zoo.labels(2), None),
    "[n, c, t, s]": (lambda o: (o[:, :, None, None] * torch.arange(1.0, 5).reshape(2, 2)), nn.CrossEntropyLoss(),
                     lambda: zoo.labels(2, 2), None),
    "picked of a tuple": (lambda o: (o, o.sum()), nn.CrossEntropyLoss(), lambda: zoo.labels(), lambda found: found[0]),
    "picked of a dict": (lambda o: {"loss": None, "logits": o}, nn.CrossEntropyLoss(), lambda: zoo.labels(),
                         lambda found: found["logits"]),
    "not contiguous": (lambda o: o.flip(1).T.contiguous().T, nn.CrossEntropyLoss(), lambda: zoo.labels(), None),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_odd_outputs(name: str) -> None:
    shape, loss, targets, output = OUTPUTS[name]
    model = Free(lambda s, x: shape(s.b(torch.tanh(s.a(x)))), a=L(4, 3), b=L(3)).double()
    plain = Free(lambda s, x: (output or (lambda o: o))(s.m(x)), m=model)
    x, y = zoo.values(4), targets()
    expected = references.ggn(plain, loss, x, y)
    G = hesse.ggn(model, loss, (x, y), output=output)
    assert oracle.difference(hesse.dense(G), expected) < 1e-10
    assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
    if name == "[n, 1]":
        return
    H = hesse.loss_hessian(model, loss, (x, y), output=output)
    assert oracle.difference(hesse.dense(H), references.hessian(plain, loss, x, y)) < 1e-10


def test_several_outputs_without_a_pick() -> None:
    model = Free(lambda s, x: (s.a(x), s.b(x).exp()), a=L(4, 2), b=L(4)).double()
    x, y = zoo.values(4), zoo.values(1)

    def loss(outputs: Any, target: Tensor) -> Tensor:
        return (outputs[0].square().sum(1) * outputs[1].sum(1) * target[:, 0]).sum()

    flat = Free(lambda s, x: torch.cat(s.m(x), 1), m=model)
    expected = references.ggn(flat, lambda o, t: loss((o[:, :2], o[:, 2:]), t), x, y)
    G = hesse.ggn(model, loss, (x, y))
    assert isinstance(G, GaussNewton)
    assert oracle.difference(hesse.dense(G), expected) < 1e-10
    assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
    assert abs(float(hesse.trace(G)) - float(expected.trace())) < 1e-9
    with pytest.raises(UnsupportedError, match="no tensor"):
        G.rows()


def test_outputs_that_are_refused() -> None:
    x, y = zoo.values(4), zoo.labels()
    total = Free(lambda s, x: s.a(x).sum(), a=L(4)).double()
    with pytest.raises(StructureError, match=r"shape \(\)"):
        G = hesse.ggn(total, lambda o, t: o**2, (x, y))
        hesse.trace(G), G.mass
    first = Free(lambda s, x: s.a(x).T, a=L(4)).double()
    G = hesse.ggn(first, lambda o, t: o.square().sum(), (x, y))
    assert isinstance(G, GaussNewton)
    expected = references.ggn(first, lambda o, t: o.square().sum(), x, y)
    assert oracle.difference(hesse.dense(G), expected) < 1e-10
    assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
    with pytest.raises(UnsupportedError, match="first axis"):
        G.rows()


def test_a_loss_that_is_not_convex_in_the_output() -> None:
    case, y = zoo.make("mlp"), zoo.values(3)

    def saddle(output: Tensor, target: Tensor) -> Tensor:
        return (output[:, 0] * output[:, 1] + (output[:, 2] - target[:, 2]) ** 2).mean()

    for loss in (saddle, _gaussian):
        targets = y[:, :1] if loss is _gaussian else y
        model = case.model if loss is saddle else nn.Sequential(case.model, L(3, 2).double())
        expected = references.ggn(model, loss, case.inputs, targets)
        assert float(torch.linalg.eigvalsh(expected)[0]) < -1e-3
        G = hesse.ggn(model, loss, (case.inputs, targets))
        assert isinstance(G, GaussNewton)
        assert oracle.difference(hesse.dense(G), expected) < 1e-10
        assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
        assert abs(float(hesse.trace(G)) - float(expected.trace())) < 1e-10
        assert hesse.Tag.PSD not in G.tags
        with pytest.raises(SymmetryError, match="negative"):
            G.rows()
        with pytest.raises(SymmetryError, match="negative"):
            hesse.ggn(model, loss, (case.inputs, targets), kind="sampled")


def _gaussian(output: Tensor, target: Tensor) -> Tensor:
    """The Gaussian likelihood by hand: no rule of hesse's."""
    mean, log_variance = output.chunk(2, 1)
    return (0.5 * (log_variance + (target - mean) ** 2 / log_variance.exp())).mean()


def test_losses_that_mix_samples() -> None:
    case = zoo.make("mlp")

    def centered(output: Tensor, target: Tensor) -> Tensor:
        return (output - output.mean(0)).square().sum()

    expected = references.ggn(case.plain, centered, *case.batch)
    G = hesse.ggn(case.model, centered, case.batch)
    assert isinstance(G, GaussNewton)
    assert oracle.difference(hesse.dense(G), expected) < 1e-10
    assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
    with pytest.raises(MixedSamplesError, match="neither the sum"):
        G.rows()
    with pytest.raises(MixedSamplesError, match="neither the sum"):
        hesse.dense(hesse.ggn(case.model, centered, case.split()))


def test_models_that_mix_samples() -> None:
    model = Free(lambda s, x: s.b(torch.tanh(s.a(x - x.mean(0)))), a=L(4), b=L(3)).double()
    inner = Free(lambda s, x: s.b((lambda h: torch.tanh(h - h.mean(0)))(s.a(x))), a=L(4), b=L(3)).double()
    x, y = zoo.values(4), zoo.labels()
    for mixing in (model, inner):
        expected = references.ggn(mixing, LOSS, x, y)
        G = hesse.ggn(mixing, LOSS, (x, y))
        assert oracle.difference(hesse.dense(G), expected) < 1e-10
        assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
        assert abs(float(hesse.trace(G)) - float(expected.trace())) < 1e-10
    with pytest.raises(MixedSamplesError):
        hesse.ggn(inner, LOSS, (x, y)).rows()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(MixedSamplesError):
        hesse.ggn(inner, LOSS, (x, y), kind="sampled")
    normalized = nn.Sequential(L(4), nn.BatchNorm1d(3), L(3)).double().train()
    with pytest.raises(MixedSamplesError, match="'1'"):
        hesse.ggn(normalized, LOSS, (x, y))


@pytest.mark.parametrize("name", ["mlp", "attention", "lstm"])
def test_without_grad_mode(name: str) -> None:
    case = zoo.make(name)
    expected = references.ggn(case.plain, LOSS, *case.batch)
    with torch.inference_mode(), pytest.raises(UnsupportedError, match="inference_mode"):
        hesse.ggn(case.model, LOSS, case.batch)
    with torch.no_grad():
        G = hesse.ggn(case.model, LOSS, case.batch)
        assert oracle.difference(hesse.dense(G), expected) < 1e-10
        assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
        sampled = hesse.dense(hesse.ggn(case.model, LOSS, case.batch, kind="sampled"))
    assert torch.equal(sampled, hesse.dense(hesse.ggn(case.model, LOSS, case.batch, kind="sampled")))


@pytest.mark.parametrize("name", ["mlp", "convolution 2d, strided"])
def test_one_sample_and_inputs_that_require_grad(name: str) -> None:
    case = zoo.make(name)
    x, y = case.inputs[:1].clone().requires_grad_(), torch.tensor([2])
    expected = references.ggn(case.plain, LOSS, x, y)
    G = hesse.ggn(case.model, LOSS, (x, y))
    assert oracle.difference(hesse.dense(G), expected) < 1e-10
    assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
    assert not hesse.diagonal(G).requires_grad and x.grad is None
    hesse.dense(hesse.ggn(case.model, LOSS, (x, y), kind="sampled"))


@pytest.mark.parametrize("name", ["product", "diagonal", "trace"])
def test_parameters_changed_in_place(name: str) -> None:
    case = zoo.make("mlp")
    G = hesse.ggn(case.model, LOSS, case.batch)
    asks = {"product": lambda: G @ G.in_space.normal(), "diagonal": lambda: hesse.diagonal(G), "trace": lambda: hesse.trace(G)}
    asks[name]()
    with torch.no_grad():
        for p in case.model.parameters():
            p.mul_(1.1)
    with pytest.raises((DataError, StructureError), match=r"in ?place"):
        asks[name]()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["mlp", "lstm", "convolution 2d, strided"])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    case = zoo.make(name)
    case.model.to(dtype)
    narrow = case.inputs.to(dtype)
    G = hesse.ggn(case.model, nn.CrossEntropyLoss(), (narrow, case.labels))
    diagonal, product = hesse.diagonal(G), G.flat @ torch.ones(G.shape[0], dtype=dtype)
    assert diagonal.dtype == product.dtype == dtype
    expected = references.ggn(case.plain.double(), nn.CrossEntropyLoss(), narrow.double(), case.labels)
    slack = {torch.float16: 5e-3, torch.bfloat16: 5e-2, torch.float32: 1e-5}[dtype]
    assert oracle.difference(diagonal.double(), expected.diagonal()) < slack
    assert oracle.difference(product.double(), expected.sum(1)) < slack


def test_float32_lstm_of_a_fused_kernel() -> None:
    case = zoo.make("lstm")
    case.model.float()
    x = case.inputs.float()
    G = hesse.ggn(case.model, nn.CrossEntropyLoss(), (x, case.labels))
    found = hesse.dense(G)
    expected = references.ggn(case.plain.double(), nn.CrossEntropyLoss(), x.double(), case.labels)
    assert oracle.difference(found.double(), expected) < 1e-5


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), lambda o, t: F.cross_entropy(o, t) + o.pow(4).mean()])
def test_products_are_followed_to_the_inputs(loss: Any) -> None:
    case = zoo.make("mlp")
    x = case.inputs.clone().requires_grad_()
    G = hesse.ggn(case.model, loss, (x, case.labels))
    v = G.in_space.normal(generator=torch.Generator().manual_seed(0))

    def form(z: torch.Tensor) -> torch.Tensor:
        columns = torch.cat([part.flatten() for part in v.values()])
        return columns @ references.ggn(case.plain, loss, z, case.labels) @ columns

    found = sum((part * v[name]).sum() for name, part in (G @ v).items())
    (slope,) = torch.autograd.grad(found, x)
    step, direction = 1e-5, torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    expected = (form((x + step * direction).detach()) - form((x - step * direction).detach())) / (2 * step)
    assert abs(float((slope * direction).sum()) - float(expected)) < 1e-6 * abs(float(expected))
    with pytest.raises(UnsupportedError, match="detach"):
        hesse.fisher(case.model, nn.CrossEntropyLoss(), (x, case.labels))


class Recurrent(nn.Module):
    """Returns a dict; in float32 its LSTM is one fused op."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.lstm(x)[0][:, -1])}


def test_dict_outputs_of_fused_kernels() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x, y = Recurrent(), torch.randn(5, 3, 4), torch.tensor([0, 2, 1, 1, 0])
    by_dict = hesse.ggn(model, lambda o, t: F.cross_entropy(o["logits"], t), (x, y))
    by_tensor = hesse.ggn(model, nn.CrossEntropyLoss(), (x, y), output=lambda o: o["logits"])
    assert oracle.difference(hesse.dense(by_dict), hesse.dense(by_tensor)) < 1e-5


@pytest.mark.parametrize("change", ["inputs", "targets", "frozen"])
def test_changed_data_and_frozen_parameters_are_noticed(change: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(L(4, 5), nn.ReLU(), L(5, 3)).double()
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2])
    model[0].requires_grad_(False)
    loss = nn.CrossEntropyLoss()
    batch = (x, y)
    made = [hesse.loss_hessian(model, loss, batch), hesse.ggn(model, loss, batch)]
    made.append(hesse.fisher(model, loss, batch, kind="sampled"))
    with torch.no_grad():
        {"inputs": x, "targets": y, "frozen": model[0].weight}[change].mul_(2)
    for A in made:
        with pytest.raises(DataError, match="in place"):
            A @ A.in_space.normal()
    for A in made[:2]:
        with pytest.raises(DataError, match="in place"):
            hesse.diagonal(A)


UNCOUNTED: dict[str, Callable[[nn.Module, nn.Parameter], Any]] = {
    "data in place": lambda model, p: p.data.add_(0.1),
    "data replaced": lambda model, p: setattr(p, "data", p.data + 0.1),
    "NumPy": lambda model, p: np.add(p.detach().numpy(), 0.1, out=p.detach().numpy()),
    "one vector": lambda model, p: vector_to_parameters(parameters_to_vector(model.parameters()) + 0.1, model.parameters()),
}


@pytest.mark.parametrize("change", UNCOUNTED)
@pytest.mark.parametrize("make", [hesse.loss_hessian, hesse.ggn, functools.partial(hesse.fisher, kind="sampled")])
def test_changes_that_pytorch_does_not_count_are_noticed(make: Any, change: str) -> None:
    """A kept graph has the old numbers in its forward pass and the new ones in what it reads: neither matrix."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(L(5, 6), nn.Tanh(), L(6, 60), nn.Tanh(), L(60, 3)).double()
        batches = [(torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 2, 1, 1])) for _ in range(3)]
    for data in (batches[0], batches):
        A = make(model, nn.CrossEntropyLoss(), data)
        v = A.in_space.normal()
        compiled = hesse.compile_products(A, compile="replay") if data is batches[0] else A
        for _ in range(4):
            _ = A @ v, compiled @ v
        UNCOUNTED[change](model, dict(model.named_parameters())["2.weight"])
        for B in (A, A.T, compiled):
            with pytest.raises(DataError, match=r"in place|written to"):
                _ = B @ v


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "buffer": lambda model, loss: model[1].running_mean.add_(3.0),
    "buffer replaced": lambda model, loss: setattr(model[1], "running_mean", torch.full((5,), 3.0, dtype=torch.float64)),
    "weights of the loss": lambda model, loss: loss.weight.mul_(torch.tensor([5.0, 1.0, 1.0])),
    "weights of the loss replaced": lambda model, loss: setattr(loss, "weight", loss.weight.flip(0)),
    "option of the loss": lambda model, loss: setattr(loss, "label_smoothing", 0.5),
    "module": lambda model, loss: model.__setitem__(2, nn.Sigmoid()),
    "mode": lambda model, loss: model.train(),
}


def average_of_ggn(model: Any, loss: Any, batches: Any) -> Any:
    return hesse.average(lambda batch: hesse.ggn(model, loss, batch), batches)


@pytest.mark.parametrize("kept", ["all", "the first", "none"])
@pytest.mark.parametrize("change", CHANGES)
def test_no_product_mixes_what_a_model_or_loss_was_with_what_it_is(
    change: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = {"all": 2**40, "the first": 1, "none": -1}[kept]
    sizes: list[int] = []
    monkeypatch.setattr(Division, "may_keep", lambda self, wanted: sizes.append(wanted) or wanted <= limit * min(sizes))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
        x, y = torch.randn(9, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2, 2, 0, 1])
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64))
    batches = [(x[:3], y[:3]), (x[3:6], y[3:6]), (x[6:], y[6:])]
    makes = (hesse.loss_hessian, hesse.ggn, lambda *given: hesse.fisher(*given, kind="empirical"), average_of_ggn)
    made, v = list[Any](), {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for make in makes:
        sizes.clear()
        made.append(make(model, loss, batches))
        made[-1].mv(v)
        shown = {"all": "3 of 3", "the first": "1 of 3", "none": "recomputed"}[kept]
        assert shown in repr(made[-1])
    CHANGES[change](model, loss)
    for A in made:
        with pytest.raises(DataError, match="the same model and the same loss"):
            A.mv(v)


class Remembering:
    """A loss that remembers its last value, and has weights."""

    def __init__(self) -> None:
        self.last, self.total, self.weight = None, torch.zeros((), dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(output, target, weight=self.weight)
        self.last = value.detach()
        self.total += self.last
        return value


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "scaled": lambda A: 2 * A,
    "sum": lambda A: hesse.identity(A.in_space) + A,
    "both": lambda A: 3 * (A - 0.5 * A),
    "blocks": lambda A: hesse.restrict(A, ["0.weight", "3.bias"]),
}


@pytest.mark.parametrize("change", [*CHANGES, "a parameter"])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_operators_made_of_those_of_batches_notice_changes(wrap: str, change: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
        x, y = torch.randn(7, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64))
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    for make in (hesse.loss_hessian, hesse.ggn, lambda *given: hesse.fisher(*given, kind="empirical")):
        A = hesse.average(lambda batch, make=make: WRAPPED[wrap](make(model, loss, batch)), batches)
        v = A.in_space.zeros()
        parts = [(WRAPPED[wrap](make(model, loss, batch)), make(model, loss, batch).mass) for batch in batches]
        expected: Any = sum(mass * hesse.dense(part) for part, mass in parts) / sum(mass for _, mass in parts)
        assert oracle.difference(hesse.dense(A), expected) < 1e-10
        A.mv(v)
    CHANGES.get(change, lambda model, loss: model[3].bias.detach().add_(1))(model, loss)
    with pytest.raises(DataError, match=r"the same (model and the same loss|parameters)"):
        A.mv(v)


@pytest.mark.parametrize("change", ["module", "loss", "maker"])
@pytest.mark.parametrize("keep", [True, False])
def test_batches_with_models_and_losses_of_their_own_notice_changes(change: str, keep: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        models = [nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double() for _ in range(2)]
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2])
    losses, weights = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)], {"w": 2.0}
    batches = [(0, x[:3], y[:3]), (1, x[3:], y[3:])]

    def make(batch: Any) -> Any:
        k, inputs, targets = batch
        return weights["w"] * hesse.ggn(models[k], losses[k], (inputs, targets))

    A = hesse.average(make, batches, keep=keep)
    expected = (hesse.dense(make(batches[0])) + hesse.dense(make(batches[1]))) / 2
    assert oracle.difference(hesse.dense(A), expected) < 1e-10
    if change == "module":
        models[1][1] = nn.Sigmoid()
    elif change == "loss":
        losses[1].label_smoothing = 0.5
    else:
        weights["w"] = 3.0
    with pytest.raises(DataError, match="the same model and the same loss"):
        A @ A.in_space.normal()


@pytest.mark.parametrize("make", [hesse.loss_hessian, hesse.ggn, average_of_ggn])
@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_a_loss_that_logs_at_some_calls_is_no_change(every: int, make: Any) -> None:
    class Logging:
        def __init__(self) -> None:
            self.calls, self.last = 0, None

        def __call__(self, output: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            found = F.mse_loss(output, target)
            if self.calls % every == 0:
                self.last = float(found)
            return found

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, x, y = nn.Linear(4, 3).double(), torch.randn(7, 4).double(), torch.randn(7, 3).double()
    A = make(model, Logging(), [(x[:3], y[:3]), (x[3:5], y[3:5]), (x[5:], y[5:])])
    expected = hesse.dense(hesse.ggn(model, nn.MSELoss(), (x, y)))
    for _ in range(3):
        assert oracle.difference(hesse.dense(A), expected) < 1e-10


def test_losses_made_anew_for_each_batch_are_watched_once() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, x = nn.Linear(4, 3).double(), torch.randn(6, 4, dtype=torch.float64)
    weight, y = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2])
    A = hesse.average(
        lambda batch: hesse.ggn(model, lambda o, t: (weight * (o - F.one_hot(t, 3)) ** 2).mean(), batch),
        [(x[:2], y[:2]), (x[2:4], y[2:4]), (x[4:], y[4:])],
    )
    v = A.in_space.normal()
    torch.testing.assert_close(A @ v, A @ v)
    assert len(A.data._watches) == 1
    weight.mul_(2)
    with pytest.raises(DataError, match=r"weight' was written to"):
        A @ v


class Lazy(nn.Linear):
    """Registers a buffer when it first runs."""

    scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.full((3,), 2.0, dtype=input.dtype), persistent=False)
        return super().forward(input) * self.scale


@pytest.mark.parametrize("run", [False, True])
@pytest.mark.parametrize("make", [hesse.loss_hessian, hesse.ggn, average_of_ggn])
def test_what_model_and_loss_write_themselves_is_no_change(make: Any, run: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, x, y = Lazy(4, 3).double(), torch.randn(9, 4, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2, 2, 0, 1])
    for remembering in (Remembering(), Remembering().__call__):
        loss: Any = remembering
        if run:
            loss(model(x), y)
        A = make(model, loss, [(x[:3], y[:3]), (x[3:], y[3:])])
        expected = hesse.dense(make(model, nn.CrossEntropyLoss(), [(x, y)]))
        for _ in range(2):
            assert oracle.difference(hesse.dense(A), expected) < 1e-10
        getattr(loss, "__self__", loss).weight.mul_(2)
        with pytest.raises(DataError, match=r"weight' was written to"):
            hesse.dense(A)
        del model.scale


@pytest.mark.parametrize("place", ["scale", "weight"])
def test_changes_before_the_first_product_are_not_taken_for_the_models_own(place: str) -> None:
    model, loss = Lazy(4, 3), Remembering()
    x, loss.weight = torch.randn(6, 4), torch.ones(3)
    A = hesse.ggn(model, loss, [(x, torch.tensor([0, 1, 2, 0, 1, 2]))])
    {"scale": model.scale, "weight": loss.weight}[place].mul_(3)
    with pytest.raises(DataError, match=place):
        _ = A @ A.in_space.zeros()


def test_ignored_targets_stay_ignored_when_labels_are_predicted() -> None:
    case = zoo.make("mlp")
    y = case.labels.clone()
    y[::2] = -100
    kept = torch.arange(len(y)) % 2 == 1
    found = hesse.fisher(case.model, nn.CrossEntropyLoss(), (case.inputs, y), kind="empirical", labels="predicted")
    alone = (case.inputs[kept], y[kept])
    expected = hesse.fisher(case.model, nn.CrossEntropyLoss(), alone, kind="empirical", labels="predicted")
    assert oracle.difference(hesse.dense(found), hesse.dense(expected)) < 1e-12
