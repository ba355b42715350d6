"""Projected rows of parameter Jacobians against the projection's matrix times per-sample loops in float64."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.core.errors import MemoryBudgetError, StructureError
from hesse.operators.projections import GaussianProjection, RandomProjection, random_projection
from hesse.parameters.contractions.projected import Columns
from tests.parameters import oracle
from tests.parameters.varied import EVERY, N, make, targets

KINDS: list[dict[str, Any]] = [{"kind": "gaussian"}, {"kind": "rademacher", "nonzeros": 3}, {"kind": "fjlt"}]
KIND = pytest.mark.parametrize("options", KINDS, ids=lambda options: options["kind"])
TOLERANCE = 1e-9
SUM = nn.MSELoss(reduction="sum")


def assert_projects(J: Any, rows: Tensor, P: RandomProjection, tolerance: float = TOLERANCE) -> None:
    found = J.project(P)
    assert oracle.difference(found, (rows.to(P.out_space.dtype) @ hesse.dense(P).mT)) < tolerance


@pytest.mark.parametrize("part", range(4))
@pytest.mark.filterwarnings("ignore")
def test_models_of_all_forms(part: int, sweep: Callable[..., list[str]], sweep_rng: random.Random) -> None:
    for name in sweep(list(EVERY)[part::4], 4):
        model, inputs = make(name)
        batch = inputs, targets(model, inputs)
        J = hesse.parameter_jacobian(model, SUM, batch)
        rows = oracle.loss_rows(model, SUM, *batch)
        for options in KINDS:
            P = random_projection(J, sweep_rng.choice([3, 8, 13]), seed=sweep_rng.randrange(99), **options)
            small = hesse.parameter_jacobian(model, SUM, batch, memory=sweep_rng.choice([9_000, 300_000]))
            for one in (J, small):
                assert_projects(one, rows, P)
        outputs = hesse.parameter_jacobian(model, None, (inputs, None))
        rows = oracle.output_rows(model, inputs, N).reshape(*outputs.out_space.shapes[0], -1)
        assert_projects(outputs, rows, random_projection(outputs, 6, **sweep_rng.choice(KINDS)))


def network() -> nn.Module:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.wide = nn.Embedding(50, 6), nn.Linear(6, 40)
            self.local = nn.Conv1d(40, 6, 3, groups=2, padding=1)
            self.head = nn.Linear(6, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            hidden = torch.tanh(self.wide(self.table(tokens))).mT
            return self.head(torch.tanh(self.local(hidden)).mean(2))

    with torch.random.fork_rng():
        torch.manual_seed(4)
        return oracle.randomize(Network().double())


def data(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 50, (count, 7), generator=generator), torch.randint(0, 4, (count,), generator=generator)


@KIND
def test_batches_of_many_samples_and_pieces_of_large_layers(options: dict[str, Any], untouched: None) -> None:
    model, (x, y) = network(), data(9)
    whole = hesse.parameter_jacobian(model, F.cross_entropy, (x, y))
    P, rows = random_projection(whole, 20, seed=1, **options), oracle.loss_rows(model, F.cross_entropy, x, y)
    for memory in (4_000, 70_000, None):
        assert_projects(hesse.parameter_jacobian(model, F.cross_entropy, (x, y), memory=memory), rows, P)
    many = torch.arange(600) % 9
    J = hesse.parameter_jacobian(model, F.cross_entropy, (x[many], y[many]))
    assert_projects(J, rows[many], P)
    with torch.random.fork_rng():
        linear, z, labels = nn.Linear(700, 300).double(), torch.randn(5, 700, dtype=torch.float64), y[:5]
    J = hesse.parameter_jacobian(linear, F.cross_entropy, (z, labels), memory="8MiB")
    assert_projects(J, oracle.loss_rows(linear, F.cross_entropy, z, labels), random_projection(J, 5, **options))


@KIND
@pytest.mark.parametrize("records", ["kept", "streamed"])
def test_outputs(options: dict[str, Any], records: Any) -> None:
    model, (x, _) = network(), data(5)
    J = hesse.parameter_jacobian(model, None, x, records=records)
    rows = oracle.output_rows(model, x, 5)
    assert_projects(J, rows, random_projection(J, 7, **options))
    own = hesse.parameter_jacobian(model, None, x, outputs=[2, 0], records=records)
    assert_projects(own, rows[:, [2, 0]], random_projection(J, 7, **options))
    samples, names = [3, 1], ["wide.weight", "table.weight"]
    some = J.select(samples, params=names)
    columns = torch.cat([torch.full(p.shape, name in names).flatten() for name, p in model.named_parameters()])
    assert_projects(some, rows[samples][..., columns], random_projection(some, 6, **options))


@KIND
def test_a_data_set(options: dict[str, Any], untouched: None) -> None:
    model, (x, y) = network(), data(11)
    weight = torch.tensor([1.0, 0.5, 2.0, 0.0], dtype=torch.float64)
    y[3] = -100
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=-100)
    batches = [(x[:4], y[:4]), (x[4:5], y[4:5]), (x[5:], y[5:])]
    J = hesse.parameter_jacobian(model, loss, batches)
    total = nn.CrossEntropyLoss(weight=weight, ignore_index=-100, reduction="sum")
    rows = oracle.loss_rows(model, total, x, y)
    P = random_projection(J, 9, **options)
    assert_projects(J, rows, P)
    out = torch.full((11, 9), torch.nan, dtype=torch.float64)
    assert J.project(P, out) is out
    assert oracle.difference(out, rows @ hesse.dense(P).mT) < TOLERANCE
    whole = hesse.parameter_jacobian(model, loss, (x, y)).project(P)
    assert oracle.difference(whole, out) < 1e-13


@KIND
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_types(options: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    model, (x, y) = network(), data(6)
    rows = oracle.loss_rows(model, F.cross_entropy, x, y)
    low = network().to(dtype)
    J = hesse.parameter_jacobian(low, F.cross_entropy, (x, y))
    P = random_projection(J, 8, **options)
    exact = hesse.dense(random_projection(model, 8, **options))
    assert J.project(P).dtype is torch.float32
    assert oracle.difference(J.project(P).double(), rows @ exact.mT) < tolerance
    half = random_projection(J, 8, dtype=torch.bfloat16, **options)
    assert J.project(half).dtype is torch.bfloat16
    assert oracle.difference(J.project(half).double(), rows @ exact.mT) < max(tolerance, 0.02)


@KIND
def test_the_same_bits_again_and_the_same_rows_in_any_batch(options: dict[str, Any]) -> None:
    model, (x, y) = network().float(), data(40)
    J = hesse.parameter_jacobian(model, F.cross_entropy, (x, y))
    P = random_projection(J, 16, seed=3, **options)
    first = J.project(P)
    again = hesse.parameter_jacobian(model, F.cross_entropy, (x.clone(), y.clone()))
    assert torch.equal(again.project(random_projection(J, 16, seed=3, **options)), first)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for part in order.split(13):
        rows = hesse.parameter_jacobian(model, F.cross_entropy, (x[part], y[part])).project(P)
        torch.testing.assert_close(rows, first[part], rtol=1e-4, atol=1e-4 * first.abs().max().item())


@KIND
def test_results_are_differentiable_with_create_graph(options: dict[str, Any]) -> None:
    model, (x, y) = network(), data(4)
    J = hesse.parameter_jacobian(model, F.cross_entropy, (x, y), create_graph=True)
    P = random_projection(J, 5, **options)
    with pytest.raises(StructureError, match="create_graph"):
        J.project(P, torch.zeros(4, 5, dtype=torch.float64))
    found = torch.autograd.grad(J.project(P).square().sum(), list(model.parameters()))
    rows = []
    for i in range(4):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    projected = torch.stack(rows) @ hesse.dense(P).mT
    expected = torch.autograd.grad(projected.square().sum(), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert oracle.difference(a, b) < 1e-8


def test_columns_of_boxes() -> None:
    whole = torch.arange(3 * 5 * 7).reshape(3, 5, 7) + 11
    outer = Columns(11).inside(((1, 3), (0, 5), (2, 6)), whole.shape)
    inner = outer.inside(((0, 2), (3, 5), (1, 2)), (2, 5, 4))
    for columns, expected in ((outer, whole[1:3, :, 2:6]), (inner, whole[1:3, 3:5, 3:4])):
        assert torch.equal(columns.of(torch.arange(expected.numel())), expected.flatten())
        assert torch.equal(torch.as_tensor(columns.part(1, 4, whole.device)), expected.flatten()[1:4])


def test_only_the_columns_of_tokens_that_occur_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = GaussianProjection.times

    def spy(self: GaussianProjection, vectors: Tensor, places: Any = None) -> Tensor:
        asked.append(vectors.shape[1])
        return original(self, vectors, places)

    monkeypatch.setattr(GaussianProjection, "times", spy)
    table, tokens = nn.Embedding(10_000, 6).double(), torch.tensor([[7, 9_999, 7], [3, 7, 3]])
    J = hesse.parameter_jacobian(table, lambda out, y: out.square().sum(), (tokens, tokens))
    P = random_projection(J, 4)
    found = J.project(P)
    assert sum(asked) == 3 * 6
    monkeypatch.undo()
    rows = oracle.loss_rows(table, lambda out, y: out.square().sum(), tokens, tokens)
    assert oracle.difference(found, P.times(rows)) < TOLERANCE


def test_what_is_refused() -> None:
    model, (x, y) = network(), data(6)
    J = hesse.parameter_jacobian(model, F.cross_entropy, (x, y))
    P = random_projection(J, 4)
    with pytest.raises(StructureError, match="a projection of"):
        J.select(params=["wide.weight"]).project(P)
    with pytest.raises(StructureError, match="Dense"):
        J.project(hesse.operators.Dense(hesse.dense(P)))  # pyright: ignore
    with pytest.raises(StructureError, match="out="):
        J.project(P, torch.empty(6, 4))
    with pytest.raises(MemoryBudgetError, match="6 rows of 1000000 numbers"):
        hesse.parameter_jacobian(model, F.cross_entropy, (x, y), memory="1MiB").project(random_projection(J, 1_000_000))


def test_attribution_by_projected_rows_agrees_with_that_by_rows() -> None:
    model, (x, y) = network(), data(30)
    J = hesse.parameter_jacobian(model, F.cross_entropy, (x, y))
    exact = oracle.loss_rows(model, F.cross_entropy, x, y)
    exact = exact @ exact.T
    scale = exact.diagonal().sqrt()
    for options in KINDS:
        rows = J.project(random_projection(J, 2048, **options))
        errors = (rows @ rows.T - exact) / torch.outer(scale, scale)
        assert errors.abs().max() < 6 * (2 / 2048) ** 0.5
