"""Hessian, GGN and empirical Fisher of many models and losses against their definitions; what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import hesse
from hesse.autodiff.linearize import JacobianOperator
from hesse.check import assert_operator
from hesse.core.errors import (
    DataError,
    DetachedError,
    MixedSamplesError,
    NondeterministicError,
    NonScalarError,
    OneShotDataError,
    StructureError,
    UnsupportedError,
)
from tests.curvature import references
from tests.parameters import oracle
from tests.parameters.fingerprint import changes, fingerprint
from tests.parameters.special import Free, L

N, C = 12, 3
WEIGHT = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)


def _labels(*shape: int) -> Tensor:
    return torch.randint(0, C, shape, generator=torch.Generator().manual_seed(1))


def _values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, C, bias=False))


def _attention(s: Any, x: Tensor) -> Tensor:
    return s.head(s.layer(x).mean(1))


def _lookup(s: Any, tokens: Tensor) -> Tensor:
    return s.head(torch.tanh(s.table(tokens)).mean(1))


def _last(s: Any, x: Tensor) -> Tensor:
    return s.head(s.lstm(x)[0][:, -1])


class Small(nn.Module):
    """A frozen, an unused and a tied parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(2, 3, 2)
        self.first, self.again = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.again.weight = self.first.weight
        self.unused = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.convolution(x)).mean(2)
        return self.again(torch.tanh(self.first(hidden))) + self.frozen


def splits(inputs: Tensor, targets: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """A batch in parts of given sizes."""
    return list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "small": (Small, lambda: _values(N, 2, 5)),
    "mlp": (_mlp, lambda: _values(N, 4)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(2, 2, 2, padding=1, padding_mode="circular"), nn.Softplus(), nn.Flatten(),
                                          L(32)), lambda: _values(N, 2, 3, 3)),
    "attention": (lambda: Free(_attention, layer=nn.TransformerEncoderLayer(4, 2, 3, 0.0, "gelu", batch_first=True), head=L(4)),
                  lambda: _values(N, 3, 4)),
    "embedding with padding": (lambda: Free(_lookup, table=nn.Embedding(C, 4, padding_idx=1), head=L(4)),
                               lambda: _labels(N, 5)),
    "tied": (lambda: Free(lambda s, t: F.linear(torch.tanh(s.table(t)).mean(1), s.table.weight), table=nn.Embedding(C, 4)),
             lambda: _labels(N, 5)),
    "lstm": (lambda: Free(_last, lstm=nn.LSTM(4, 2, batch_first=True), head=L(2)), lambda: _values(N, 3, 4)),
    "group norm": (lambda: nn.Sequential(L(4, 6), nn.GroupNorm(2, 6), nn.Tanh(), L(6)), lambda: _values(N, 4)),
    "batch norm": (lambda: nn.Sequential(L(4, 5), nn.BatchNorm1d(5), nn.Tanh(), L(5)), lambda: _values(N, 4)),
    "unused": (lambda: Free(lambda s, x: s.a(x).sin(), a=L(4), b=L(2, 2)), lambda: _values(N, 4)),
    "output past the parameters": (lambda: Free(lambda s, x: s.a(x) * x[:, :1], a=L(4)), lambda: _values(N, 4)),
}  # fmt: skip


def make(name: str) -> tuple[nn.Module, Any]:
    factory, inputs = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return oracle.randomize(factory().double().eval()), inputs()


@pytest.mark.parametrize("name", MODELS)
def test_matrices_of_one_batch_equal_their_definitions(name: str) -> None:
    model, x = make(name)
    y = _labels(N)
    loss = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1, label_smoothing=0.1)
    summed = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1, label_smoothing=0.1, reduction="sum")
    mass = float(WEIGHT[y[y != 1]].sum())
    H, G, E = (
        hesse.loss_hessian(model, loss, (x, y)),
        hesse.ggn(model, loss, (x, y)),
        hesse.fisher(model, loss, (x, y), kind="empirical"),
    )
    assert oracle.difference(hesse.dense(H), references.hessian(model, loss, x, y)) < 1e-10
    assert oracle.difference(hesse.dense(G), references.ggn(model, loss, x, y)) < 1e-10
    assert oracle.difference(hesse.dense(E), references.outer_products(model, summed, x, y) / mass) < 1e-10
    assert H.mass == G.mass == E.mass == pytest.approx(mass)
    for A in (H, G, E):
        assert_operator(A)


def _normalized(s: Any, x: Tensor) -> Tensor:
    weight = s.v * (s.g / s.v.norm(dim=1, keepdim=True))
    return s.b(torch.tanh(F.linear(x, weight, s.shift)))


@pytest.mark.parametrize("by_hooks", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
def test_weight_norm_whose_own_second_derivative_is_wrong(by_hooks: bool) -> None:
    norm = nn.utils.weight_norm if by_hooks else nn.utils.parametrizations.weight_norm
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(norm(L(4, 5)), nn.Tanh(), L(5)).double()
    g, v = sorted((p for name, p in model.named_parameters() if name.startswith("0.") and p.ndim == 2), key=lambda p: p.numel())
    plain = Free(_normalized, g=g, v=v, shift=model[0].bias, b=model[2])
    x, y = _values(N, 4), _labels(N)
    names = {id(p): name for name, p in model.named_parameters()}
    order = [names[id(p)] for p in plain.parameters()]
    for make_operator, expected in ((hesse.loss_hessian, references.hessian), (hesse.ggn, references.ggn)):
        A = make_operator(model, F.cross_entropy, (x, y))
        found = hesse.dense(A)
        places = A.in_space.unravel(torch.arange(A.in_space.dim, dtype=torch.float64))
        columns = torch.cat([places[name].flatten() for name in order]).long()
        assert oracle.difference(found[columns][:, columns], expected(plain, F.cross_entropy, x, y)) < 1e-10


LOSSES: dict[str, tuple[Callable[[Any, Any], Tensor], Callable[[], Tensor]]] = {
    "mean": (nn.CrossEntropyLoss(), lambda: _labels(N)),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHT), lambda: _labels(N)),
    "ignored": (nn.CrossEntropyLoss(ignore_index=0), lambda: _labels(N)),
    "class weights and ignored": (nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=2, label_smoothing=0.2), lambda: _labels(N)),
    "sum": (nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), lambda: _labels(N)),
    "soft targets": (nn.CrossEntropyLoss(), lambda: _values(N, C).softmax(1)),
    "squares": (nn.MSELoss(), lambda: _values(N, C)),
    "function": (F.huber_loss, lambda: _values(N, C)),
    "batchmean": (lambda o, t: F.kl_div(o.log_softmax(1), t, reduction="batchmean"), lambda: _values(N, C).softmax(1)),
    "callable, mean": (lambda o, t: (o - t).cosh().log().mean(), lambda: _values(N, C)),
    "callable, sum": (lambda o, t: ((o - t) ** 4).sum(), lambda: _values(N, C)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sizes", [(1, 4, 2, 3, 2), (12,)])
def test_uneven_parts_give_the_matrix_of_the_whole(name: str, sizes: tuple[int, ...]) -> None:
    model, x = make("mlp")
    loss, targets = LOSSES[name]
    y = targets()
    data = splits(x, y, sizes)
    for make_operator, expected in (
        (hesse.loss_hessian, references.hessian(model, loss, x, y)),
        (hesse.ggn, references.ggn(model, loss, x, y)),
        (lambda *a: hesse.fisher(*a, kind="empirical"), hesse.dense(hesse.fisher(model, loss, (x, y), kind="empirical"))),
    ):
        A = make_operator(model, loss, data)
        assert oracle.difference(hesse.dense(A), expected) < 1e-10
        assert oracle.difference(hesse.diagonal(A), expected.diagonal()) < 1e-10
        by_hand = hesse.average(lambda batch: make_operator(model, loss, batch), data)  # noqa: B023
        assert oracle.difference(hesse.dense(by_hand), expected) < 1e-10
        assert A.mass == pytest.approx(make_operator(model, loss, (x, y)).mass)


@pytest.mark.parametrize("place", [0, 1, 4])
def test_a_batch_with_every_target_ignored_counts_nothing(place: int) -> None:
    model, x = make("mlp")
    loss, sizes = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=-1), (1, 4, 2, 3, 2)
    y = _labels(N)
    start = sum(sizes[:place])
    y[start : start + sizes[place]] = -1
    data = splits(x, y, sizes)
    assert oracle.difference(hesse.dense(hesse.loss_hessian(model, loss, data)), references.hessian(model, loss, x, y)) < 1e-10
    assert oracle.difference(hesse.dense(hesse.ggn(model, loss, data)), references.ggn(model, loss, x, y)) < 1e-10
    kept = y != -1
    summed = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=-1, reduction="sum")
    expected = references.outer_products(model, summed, x[kept], y[kept]) / float(WEIGHT[y[kept]].sum())
    assert oracle.difference(hesse.dense(hesse.fisher(model, loss, data, kind="empirical")), expected) < 1e-10


def test_nothing_that_counts_is_refused() -> None:
    model, x = make("mlp")
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    data = splits(x, torch.full((N,), -1), (5, 7))
    with pytest.raises(DataError, match="counts"):
        hesse.dense(hesse.loss_hessian(model, loss, data))


def test_a_shuffling_loader_is_read_again_for_every_product() -> None:
    model, x = make("mlp")
    y, loss = _labels(N), nn.CrossEntropyLoss(weight=WEIGHT)
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        found = hesse.dense(hesse.loss_hessian(model, loss, loader))
        assert oracle.difference(found, references.hessian(model, loss, x, y)) < 1e-10


def test_fisher_with_predicted_labels() -> None:
    model, x = make("mlp")
    predicted = model(x).argmax(1)
    assert not torch.equal(predicted, _labels(N))
    F_predicted = hesse.fisher(model, F.cross_entropy, (x, _labels(N)), kind="empirical", labels="predicted")
    expected = references.outer_products(model, F.cross_entropy, x, predicted) / N
    assert oracle.difference(hesse.dense(F_predicted), expected) < 1e-10
    J = hesse.parameter_jacobian(model, F.cross_entropy, (x, predicted))
    squares = J.in_space.ravel(J.sum_of_squares()) / J.mass
    assert oracle.difference(hesse.diagonal(F_predicted), squares) < 1e-12
    with pytest.raises(StructureError, match="kind"):
        hesse.fisher(model, F.cross_entropy, (x, predicted), kind="exact")  # pyright: ignore[reportArgumentType]


def test_sequences_of_targets() -> None:
    model = Free(lambda s, x: s.b(torch.tanh(s.a(x))).transpose(1, 2), a=L(4, 5), b=L(5)).double()
    x, y = _values(N, 6, 4), _labels(N, 6)
    loss = nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=2)
    data = splits(x, y, (5, 1, 6))
    assert oracle.difference(hesse.dense(hesse.ggn(model, loss, data)), references.ggn(model, loss, x, y)) < 1e-10
    assert oracle.difference(hesse.dense(hesse.loss_hessian(model, loss, data)), references.hessian(model, loss, x, y)) < 1e-10


MAKERS: dict[str, Callable[..., hesse.LinearOperator]] = {
    "loss_hessian": hesse.loss_hessian,
    "ggn": hesse.ggn,
    "fisher": lambda *args, **options: hesse.fisher(*args, kind="empirical", **options),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", MAKERS)
def test_data_that_cannot_be_used_is_refused(name: str) -> None:
    model, x = make("mlp")
    y = _labels(N)
    with pytest.raises(OneShotDataError, match="generator"):
        MAKERS[name](model, F.cross_entropy, ((x, y) for _ in range(2)))
    with pytest.raises(DataError, match="size 0"):
        MAKERS[name](model, F.cross_entropy, (x[:0], y[:0]))
    with pytest.raises(DataError, match="5 rows where input has 12"):
        MAKERS[name](model, F.cross_entropy, (x, y[:5]))
    with pytest.raises(DataError, match="no batch"):
        MAKERS[name](model, F.cross_entropy, [])
    with pytest.raises(DataError, match="broadcasting"):
        one = L(4, 1).double()
        hesse.dense(MAKERS[name](one, F.mse_loss, [(x, y.double()), (x[:3], y[:3].double())]))


@pytest.mark.parametrize("name", ["loss_hessian", "ggn"])
def test_losses_without_a_second_derivative_by_the_parameters_are_refused(name: str) -> None:
    model, x = make("mlp")
    with pytest.raises(NonScalarError, match="shape"):
        MAKERS[name](model, nn.CrossEntropyLoss(reduction="none"), (x, _labels(N)))
    with pytest.raises(DetachedError, match="detach"):
        MAKERS[name](model, lambda o, t: F.cross_entropy(o.detach(), t), (x, _labels(N)))
    with pytest.raises(MixedSamplesError, match="'1'"):
        normalized = nn.Sequential(L(4), nn.BatchNorm1d(C)).double()
        MAKERS[name](normalized, F.cross_entropy, (x, _labels(N)))


@pytest.mark.parametrize("name", MAKERS)
def test_dropout_in_train_mode_is_refused_by_name(name: str) -> None:
    model = nn.Sequential(L(4, 5), nn.Dropout(0.3), L(5)).double().train()
    with pytest.raises(NondeterministicError, match=r"'1' \(Dropout\)"):
        MAKERS[name](model, F.cross_entropy, (_values(N, 4), _labels(N)))
    MAKERS[name](model.eval(), F.cross_entropy, (_values(N, 4), _labels(N)))


@pytest.mark.parametrize("name", MAKERS)
def test_a_loss_that_reads_parameters_past_the_output_is_refused(name: str) -> None:
    model, x = make("mlp")

    def penalized(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) + sum(p.square().sum() for p in model.parameters())

    with pytest.raises(UnsupportedError, match=r"parameter '0\.weight'"):
        hesse.dense(MAKERS[name](model, penalized, (x, _labels(N))))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("data", ["one batch", "loader"])
def test_nothing_is_left_on_the_model(name: str, data: str) -> None:
    model = nn.Sequential(L(4, 6), nn.BatchNorm1d(6).eval(), nn.Dropout(0.0), L(6)).double()
    x, y = _values(N, 4), _labels(N)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = fingerprint(model)
    A = MAKERS[name](model, nn.CrossEntropyLoss(), (x, y) if data == "one batch" else splits(x, y, (5, 7)))
    hesse.dense(A), A.mass, A.T.mv(A.in_space.zeros())
    assert changes(before, fingerprint(model)) == []


def test_chosen_parameters_are_a_block_of_the_whole() -> None:
    model, x = make("mlp")
    y = _labels(N)
    expected = references.hessian(model, F.cross_entropy, x, y)
    for name in MAKERS:
        whole = hesse.dense(MAKERS[name](model, F.cross_entropy, (x, y)))
        block = hesse.dense(MAKERS[name](model, F.cross_entropy, (x, y), params=["2.weight"]))
        assert oracle.difference(block, whole[-15:, -15:]) < 1e-10
    assert (
        oracle.difference(
            hesse.dense(hesse.loss_hessian(model, F.cross_entropy, (x, y), params=["2.weight"])), expected[-15:, -15:]
        )
        < 1e-10
    )


def test_the_way_to_products_is_checked_once_for_a_model_and_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[int] = []
    original = JacobianOperator._agrees

    def counted(self: Any, way: str) -> bool:
        checks.append(1)
        return original(self, way)

    monkeypatch.setattr(JacobianOperator, "_agrees", counted)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    v = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for count in (6, 6, 4, 6):
        x, y = torch.randn(count, 5, dtype=torch.float64), torch.randint(0, 3, (count,))
        hesse.ggn(model, nn.CrossEntropyLoss(), (x, y)) @ v
    assert len(checks) == 2  # six samples, four samples
    model.register_forward_hook(lambda module, inputs, output: output.sin())
    hesse.ggn(model, nn.CrossEntropyLoss(), (x, y)) @ v
    assert len(checks) == 3  # another graph
