"""One run of a model gives its value, its Jacobian and the graph of its rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hesse
from hesse.autodiff.model import as_model
from hesse.autodiff.model_run import ModelRun
from hesse.core.errors import DetachedError, NondeterministicError, UnsupportedError
from tests.parameters import oracle
from tests.parameters.fingerprint import changes, fingerprint
from tests.parameters.special import Free, L

N = 6


def _values(*shape: int) -> Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def _attention(s: Any, x: Tensor) -> Tensor:
    q = s.a(x).unflatten(2, (2, 2)).transpose(1, 2)
    return s.b(F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(1))


MODELS: dict[str, tuple[Any, Any, int]] = {
    "mlp": (lambda: nn.Sequential(L(4, 3), nn.Tanh(), L(3)), lambda: _values(4), 1),
    "several inputs": (lambda: Free(lambda s, p, q: s.a(p) * s.b(q), a=L(4), b=L(2)), lambda: (_values(4), _values(2)), 1),
    "named inputs": (lambda: Free(lambda s, p, q: s.a(p) * s.b(q), a=L(4), b=L(2)),
                     lambda: {"q": _values(2), "p": _values(4)}, 1),
    "unused": (lambda: Free(lambda s, x: s.a(x), a=L(4), b=L(2)), lambda: _values(4), 1),
    "batch norm": (lambda: nn.Sequential(L(4), nn.BatchNorm1d(3)), lambda: _values(4), 1),
    "attention": (lambda: Free(_attention, a=L(3, 4), b=L(8)), lambda: _values(2, 3), 2),
    "checkpointed": (lambda: Free(lambda s, x: s.b(checkpoint(s.a, x, use_reentrant=False).tanh()), a=L(4, 3), b=L(3)),
                     lambda: _values(4), 1),
}  # fmt: skip


def _make(name: str) -> tuple[nn.Module, Any]:
    factory, inputs, _ = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return oracle.randomize(factory().double().eval()), inputs()


@pytest.mark.parametrize("name", MODELS)
def test_value_and_jacobian(name: str) -> None:
    model, x = _make(name)
    before = fingerprint(model)
    expected = oracle.run(model, x)
    rows = torch.stack([oracle.gradient(element, oracle.trainable(model)) for element in expected.flatten()]).detach()
    run = ModelRun(as_model(model), x, N, "a test")
    assert torch.equal(run.value, expected.detach()) or oracle.difference(run.value, expected.detach()) < 1e-12
    assert not run.value.requires_grad
    J = run.jacobian
    assert J is run.jacobian
    assert oracle.difference(hesse.dense(J), rows) < 1e-12
    v = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = torch.randn(rows.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert oracle.difference(J.flat @ v, rows @ v) < 1e-12
    assert oracle.difference(J.T.flat @ u, rows.mT @ u) < 1e-12
    assert run.forward is not None and run.forward.count == N
    assert run.held_bytes > 0
    assert list(run.space.names) == [key for key, p in model.named_parameters() if p.requires_grad]
    watched = {t.data_ptr() for t in run.reads}
    assert {p.data_ptr() for p in model.parameters()} <= watched  # frozen ones, too
    assert changes(before, fingerprint(model)) == []


@pytest.mark.parametrize("name", MODELS)
def test_how_often_the_model_runs(name: str) -> None:
    model, x = _make(name)
    calls: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: calls.append(1))
    run = ModelRun(as_model(model), x, N, "a test")
    assert len(calls) == 1
    _ = run.jacobian
    assert len(calls) == MODELS[name][2]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recurrences(kind: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Free(lambda s, x: s.b(s.a(x)[0][:, -1]), a=kind(3, 2, batch_first=True), b=L(2)).to(dtype)
    x = _values(4, 3).to(dtype)
    run = ModelRun(as_model(model), x, N, "a test")
    expected = torch.stack([oracle.gradient(e, oracle.trainable(model)) for e in oracle.run(model, x).flatten()]).detach()
    v = torch.randn(expected.shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
    slack = 1e-5 if dtype == torch.float32 else 1e-12
    assert oracle.difference(run.jacobian.flat @ v, expected @ v) < slack
    assert oracle.difference(hesse.dense(run.jacobian), expected) < slack


def test_outputs_that_are_no_tensors() -> None:
    model = Free(lambda s, x: SimpleNamespace(logits=s.a(x)), a=L(4)).double()
    picked = ModelRun(as_model(model, output=lambda o: o.logits), _values(4), N, "a test")
    assert isinstance(picked.value, Tensor) and picked.forward is not None
    several = Free(lambda s, x: {"a": s.a(x), "b": (s.a(x).exp(), s.a(x)[:, 0])}, a=L(4)).double()
    run = ModelRun(as_model(several), _values(4), N, "a test")
    assert run.forward is None
    assert set(run.value) == {"a", "b"} and not run.value["b"][0].requires_grad
    flat = Free(lambda s, x: torch.cat([(o := s.m(x))["a"].flatten(), o["b"][0].flatten(), o["b"][1]]), m=several)
    expected = torch.stack([oracle.gradient(e, oracle.trainable(flat)) for e in flat(_values(4))]).detach()
    assert oracle.difference(hesse.dense(run.jacobian), expected) < 1e-12


def test_a_function_and_its_parameters() -> None:
    params = {"w": _values(4)[:3].clone(), "deep": [torch.zeros(3, dtype=torch.float64)]}
    run = ModelRun(as_model((lambda p, x: F.linear(x, p["w"], p["deep"][0]).sin(), params)), _values(4), N, "a test")
    assert list(run.space.names) == ["w", "deep.0"]
    assert run.value.shape == (N, 3)
    assert not params["w"].requires_grad


def test_inside_transforms() -> None:
    model, x = _make("mlp")
    rows = torch.stack([oracle.gradient(element, oracle.trainable(model)) for element in model(x).flatten()]).detach()
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}

    def scaled(factor: Tensor) -> Tensor:
        run = ModelRun(as_model(model), x, N, "a test")
        assert run.forward is None and run.held_bytes == 0
        return factor * (run.jacobian @ ones).sum() + factor**2 * run.value.sum()

    found = torch.func.grad(scaled)(torch.tensor(3.0, dtype=torch.float64))
    assert abs(float(found) - float(rows.sum() + 6 * model(x).sum())) < 1e-10


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Sequential(L(4, 3), nn.Tanh(), L(3)).double()
    twin = nn.Sequential(L(4, 3), nn.Tanh(), L(3)).double()
    twin.load_state_dict(model.state_dict())
    x = _values(4)
    run = ModelRun(
        as_model((lambda p, x: torch.func.functional_call(model, p, (x,)), dict(model.named_parameters()))), x, N, "-"
    )
    expected = torch.stack([oracle.gradient(e, oracle.trainable(twin)) for e in twin(x).flatten()]).detach()
    assert oracle.difference(hesse.dense(run.jacobian), expected) < 1e-12


def test_refusals() -> None:
    model, x = _make("mlp")
    with torch.inference_mode(), pytest.raises(UnsupportedError, match=r"inference_mode[\s\S]*use torch.no_grad"):
        ModelRun(as_model(model), x, N, "a test")
    with pytest.raises(DetachedError, match="cut by `detach`"):
        ModelRun(as_model(Free(lambda s, x: s.m(x).detach(), m=model)), x, N, "a test")
    with pytest.raises(NondeterministicError, match="Dropout"):
        ModelRun(as_model(nn.Sequential(model, nn.Dropout(0.5)).train()), x, N, "a test")
    reentrant = Free(lambda s, x: s.b(checkpoint(s.a, x, use_reentrant=True)), a=L(4, 3), b=L(3)).double()  # pyright: ignore
    with pytest.raises(UnsupportedError, match="use_reentrant=False"):
        ModelRun(as_model(reentrant), x.requires_grad_(), N, "a test")
