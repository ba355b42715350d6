"""Hessians by inputs and by activations, against dense double backward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import hesse
from hesse.check import assert_operator
from hesse.core.errors import DataError, DetachedError, LeafError, MixedSamplesError, StructureError, UnsupportedError
from hesse.curvature.input import activation_hessian, input_hessian

from ..autodiff.programs import REAL, hessian_by_loops, seeded

LABELS = torch.tensor([0, 2, 1, 1])


def _mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def _flat(model: Callable[[Tensor], Tensor], loss: Callable[..., Tensor], x: Tensor, y: Any) -> Tensor:
    return hessian_by_loops(lambda t: loss(model(t), y), x).reshape(x.numel(), x.numel())


def test_by_the_input() -> None:
    model, x, loss = _mlp(), seeded(4, 3), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5], dtype=REAL))
    expected = _flat(model, loss, x, LABELS)
    H = input_hessian(model, loss, (x, LABELS))
    torch.testing.assert_close(hesse.dense(H), expected)
    blocks = H.blocks()
    assert blocks.shape == (4, 3, 3)
    torch.testing.assert_close(torch.block_diag(*blocks), expected)
    torch.testing.assert_close(hesse.diagonal(H), expected.diagonal())
    torch.testing.assert_close(H @ x, (expected @ x.flatten()).reshape(4, 3))
    assert H.mass == pytest.approx(1 + 0.5 + 2 + 2)
    assert not H.additive
    torch.testing.assert_close(H.value, loss(model(x), LABELS).detach())
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(H.gradient, torch.autograd.grad(loss(model(leaf), LABELS), leaf)[0])
    assert_operator(H)


def test_frozen_models_functions_and_layers_without_parameters() -> None:
    model, x = _mlp(), seeded(4, 3)
    expected = _flat(model, F.mse_loss, x, x + 1)
    pair = ((lambda p, t: torch.func.functional_call(model, p, (t,))), dict(model.named_parameters()))
    torch.testing.assert_close(hesse.dense(input_hessian(pair, F.mse_loss, (x, x + 1))), expected)
    model.requires_grad_(False)
    model[0].weight.requires_grad_(True)
    torch.testing.assert_close(hesse.dense(input_hessian(model, F.mse_loss, (x, x + 1))), expected)
    model.requires_grad_(False)
    H = input_hessian(model, F.mse_loss, (x.clone().requires_grad_(), x + 1))
    torch.testing.assert_close(hesse.dense(H), expected)
    assert not (H @ x).requires_grad
    squares = hesse.dense(input_hessian(nn.Softplus(), lambda o, t: (o**2).sum(), (x, None)))
    torch.testing.assert_close(squares, _flat(F.softplus, lambda o, t: (o**2).sum(), x, None))


class Two(nn.Module):
    """Two tensors and constants in, an object out."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(4, 3), nn.Linear(3, 2)

    def forward(self, a: Tensor, tokens: Tensor, b: Tensor | None = None, scale: float = 2.0) -> dict[str, Tensor]:
        z = torch.tanh(self.mix(a + self.table(tokens)))
        return {"out": scale * z * (1 if b is None else b[:, :, None].sum(1))}


def test_dicts_and_tuples_hold_constants_still() -> None:
    torch.manual_seed(0)
    model, a, b, tokens = Two().double(), seeded(4, 3), seeded(4, 2, seed=1), torch.tensor([0, 3, 1, 1])

    def objective(flat: Tensor) -> Tensor:
        return (model(flat[:12].reshape(4, 3), tokens, flat[12:].reshape(4, 2), 1.5)["out"] ** 2).sum()

    expected = hessian_by_loops(objective, torch.cat([a.flatten(), b.flatten()]))
    options: dict[str, Any] = {"output": lambda o: o["out"]}

    def loss(o: Tensor, t: Tensor) -> Tensor:
        return (o**2).sum()

    named = input_hessian(model, loss, ({"a": a, "tokens": tokens, "b": b, "scale": 1.5}, LABELS), **options)
    assert named.in_space.names == ("a", "b")
    torch.testing.assert_close(hesse.dense(named), expected)
    torch.testing.assert_close(hesse.diagonal(named), expected.diagonal())
    product = named @ {"a": a, "tokens": None, "b": b, "scale": None}
    assert product["tokens"] is None and product["scale"] is None
    blocks, order = named.blocks(), [0, 1, 2, 12, 13]
    torch.testing.assert_close(blocks[0], expected[order][:, order])
    placed = input_hessian(model, loss, ((a, tokens, b, 1.5), LABELS), **options)
    assert placed.in_space.names == ("0", "2")
    torch.testing.assert_close(hesse.dense(placed), expected)
    with pytest.raises(LeafError, match="activation_hessian"):
        input_hessian(nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 1)), loss, (tokens, LABELS))


def _perturbed(model: nn.Module, part: nn.Module, x: Any, added: Tensor) -> Tensor:
    """The model's output with something added to what a part returns, by swapping the part's forward method."""
    original = part.forward
    part.forward = lambda *args: original(*args) + added
    try:
        return model(x)
    finally:
        del part.forward


def _by_activation(model: nn.Module, at: str, x: Any, loss: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    zero = torch.zeros(shape, dtype=REAL)
    part = model.get_submodule(at)
    with sdpa_kernel(SDPBackend.MATH):
        H = hessian_by_loops(lambda t: loss(_perturbed(model, part, x, t)), zero)
    return H.reshape(zero.numel(), zero.numel())


@pytest.mark.parametrize("at", ["0", "1", "2"])
def test_by_an_activation(at: str) -> None:
    model, x = _mlp(), seeded(4, 3)
    loss = nn.CrossEntropyLoss()
    H = activation_hessian(model, loss, (x, LABELS), at)
    shape = (4, 3) if at == "2" else (4, 5)
    expected = _by_activation(model, at, x, lambda o: loss(o, LABELS), shape)
    assert H.in_space.shapes == (torch.Size(shape),)
    torch.testing.assert_close(hesse.dense(H), expected)
    torch.testing.assert_close(torch.block_diag(*H.blocks()), expected)
    torch.testing.assert_close(hesse.diagonal(H), expected.diagonal())
    assert_operator(H)
    whole = activation_hessian(model, loss, (x, LABELS), "")
    torch.testing.assert_close(hesse.dense(whole), hesse.dense(activation_hessian(model, loss, (x, LABELS), "2")))


def test_layers_of_a_transformer_and_tokens() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Embedding(5, 4), layer, nn.Linear(4, 2)).double().eval()
    tokens = torch.tensor([[0, 1, 2], [4, 4, 3]])
    for at, shape in (("0", (2, 3, 4)), ("1.linear1", (2, 3, 6)), ("1", (2, 3, 4))):
        H = activation_hessian(model, lambda o, t: (o**3).sum(), (tokens, tokens), at)
        expected = _by_activation(model, at, tokens, lambda o: (o**3).sum(), shape)
        torch.testing.assert_close(hesse.dense(H), expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(torch.block_diag(*H.blocks()), expected, rtol=1e-8, atol=1e-10)


class Recurrent(nn.Module):
    """A module that returns a tuple, one that is called twice, one that is never called, and one in place."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.twice, self.never = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 4), nn.Linear(2, 2)
        self.kink, self.split = nn.ELU(inplace=True), nn.Identity()
        self.top = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, (h, c) = self.lstm(x)
        z = self.twice(self.kink(self.twice(states[:, -1])))
        _, z = self.split((torch.arange(3), z))
        return self.top(z * h[0] * c[0])


def test_tuples_and_modules_called_twice() -> None:
    torch.manual_seed(0)
    model, x = Recurrent().double(), seeded(4, 2, 3)

    def loss(o: Tensor, t: Any) -> Tensor:
        return (o**2).sum()

    H = activation_hessian(model, loss, (x, LABELS), "lstm")
    assert H.in_space.names == ("0", "1.0", "1.1")
    assert H.in_space.shapes == ((4, 2, 4), (1, 4, 4), (1, 4, 4))

    def head(flat: Tensor) -> Tensor:
        with torch.no_grad():
            states, (h, c) = model.lstm(x)
        parts = [p.reshape(s.shape) for p, s in zip(flat.split([32, 16, 16]), (states, h, c), strict=True)]
        states, h, c = states + parts[0], h + parts[1], c + parts[2]
        z = model.twice(F.elu(model.twice(states[:, -1])))
        return (model.top(z * h[0] * c[0]) ** 2).sum()

    expected = hessian_by_loops(head, torch.zeros(64, dtype=REAL))
    torch.testing.assert_close(hesse.dense(H), expected)
    torch.testing.assert_close(hesse.diagonal(H), expected.diagonal())
    with pytest.raises(MixedSamplesError, match="first axis"):
        H.blocks()
    with pytest.raises(UnsupportedError, match="'twice' is called 2 times"):
        activation_hessian(model, loss, (x, LABELS), "twice")
    last = activation_hessian(model, loss, (x, LABELS), "twice", call=1)
    split = activation_hessian(model, loss, (x, LABELS), "split")
    assert split.in_space.names == ("1",)
    torch.testing.assert_close(hesse.dense(last), hesse.dense(split))
    first = hesse.dense(activation_hessian(model, loss, (x, LABELS), "twice", call=0))

    def after_first(added: Tensor) -> Tensor:
        with torch.no_grad():
            states, (h, c) = model.lstm(x)
        return (model.top(model.twice(F.elu(model.twice(states[:, -1]) + added)) * h[0] * c[0]) ** 2).sum()

    torch.testing.assert_close(first, hessian_by_loops(after_first, torch.zeros(4, 4, dtype=REAL)).reshape(16, 16))
    kink = activation_hessian(model, loss, (x, LABELS), "kink")
    assert kink.in_space.shapes == ((4, 4),)
    for at, call in (("never", None), ("twice", 2), ("twice", -1)):
        with pytest.raises(StructureError, match="called"):
            activation_hessian(model, loss, (x, LABELS), at, call=call)


def test_samples_that_influence_each_other_have_no_blocks() -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean(0)

    x = seeded(4, 3)
    expected = _flat(Mixing(), lambda o, t: (o**2).sum(), x, None)
    H = input_hessian(Mixing(), lambda o, t: (o**2).sum(), (x, None))
    torch.testing.assert_close(hesse.dense(H), expected)
    torch.testing.assert_close(hesse.diagonal(H), expected.diagonal())
    with pytest.raises(MixedSamplesError, match=r"hesse\.dense"):
        H.blocks()


def test_hooks_are_taken_away_and_nothing_else_changes() -> None:
    model, x = _mlp(), seeded(4, 3)
    own = model[1].register_forward_hook(lambda module, args, result: result * 2)
    before = {name: (p.clone(), p.grad, p.requires_grad) for name, p in model.named_parameters()}

    def hooks() -> list[Any]:
        return [(name, list(part._forward_hooks)) for name, part in model.named_modules()]

    was = hooks()
    H = activation_hessian(model, F.mse_loss, (x, x), "1")
    assert hooks() == was
    expected = hessian_by_loops(lambda t: F.mse_loss(model[2](2 * model[1].forward(model[0](x)).detach() + t), x),
                                torch.zeros(4, 5, dtype=REAL)).reshape(20, 20)  # fmt: skip
    torch.testing.assert_close(hesse.dense(H), expected)
    own.remove()

    def failing(o: Tensor, t: Tensor) -> Tensor:
        raise KeyError("in the loss")

    was = hooks()
    with pytest.raises(KeyError):
        activation_hessian(model, failing, (x, x), "1")
    with pytest.raises(RuntimeError):
        activation_hessian(model, F.mse_loss, (x[:, :2], x), "0")
    assert hooks() == was
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0]) and p.grad is None and p.requires_grad
    assert model.training


def test_refusals() -> None:
    model, x = _mlp(), seeded(4, 3)
    with pytest.raises(StructureError, match="no submodule 'head'"):
        activation_hessian(model, F.mse_loss, (x, x), "head")
    with pytest.raises(StructureError, match="has no submodules"):
        activation_hessian((lambda p, t: p["w"] * t, {"w": x[0]}), F.mse_loss, (x, x), "w")
    with pytest.raises(LeafError, match="no floating-point tensor"):
        counting = nn.Sequential(nn.Identity(), nn.Embedding(4, 3))
        activation_hessian(counting, F.mse_loss, (LABELS, x.float()), "0")
    with pytest.raises(DetachedError):
        input_hessian(model, lambda o, t: F.mse_loss(o.detach(), t), (x, x))
    with pytest.raises(DataError, match="3 rows"):
        input_hessian(model, F.mse_loss, (x, x[:3]))
    with pytest.raises(MixedSamplesError):
        input_hessian(nn.Sequential(nn.BatchNorm1d(3)).double(), F.mse_loss, (x, x))
