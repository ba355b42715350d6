"""Per-sample gradients of models that use their parameters in unusual ways, against loops over samples in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.core.errors import MixedSamplesError, UnsupportedError
from tests.parameters import oracle
from tests.parameters.special import MODELS, OUT, Free, L, P, make

TOLERANCE = 1e-10


def _squares(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).sum()


def _require(model: nn.Module, inputs: Any, targets: Tensor, J: hesse.ParameterJacobian) -> None:
    rows = oracle.loss_rows(model, _squares, inputs, targets)
    assert oracle.difference(J.dense(), rows) < TOLERANCE
    assert oracle.difference(J.norms(), rows.norm(dim=1)) < TOLERANCE
    assert oracle.difference(J.gram(), rows @ rows.mT) < TOLERANCE
    assert oracle.difference(J.in_space.ravel(J.sum_of_squares()), rows.square().sum(0)) < TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_rows_equal_a_loop_over_samples(name: str) -> None:
    for count in (6, 1, 2, OUT, 5):
        model, inputs = make(name, count, seed=count)
        targets = torch.randn(count, OUT, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        J = hesse.parameter_jacobian(model, nn.MSELoss(reduction="sum"), (inputs, targets))
        _require(model, inputs, targets, J)


MOVING = {"boolean routing", "routing past the parameters", "packed sequences", "sorted inside", "flipped and back"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_only_models_that_move_samples_are_run_one_by_one(name: str) -> None:
    model, inputs = make(name, 6)
    J = hesse.parameter_jacobian(model, _squares, (inputs, torch.ones(6, OUT, dtype=torch.float64)))
    assert ("sample by sample" in J.paths.values()) == (name in MOVING)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_second_call_with_other_data_and_parameters_is_right(name: str) -> None:
    model, first = make(name, 5, seed=10)
    _, second = make(name, 5, seed=11)
    targets = torch.ones(5, OUT, dtype=torch.float64)
    hesse.parameter_jacobian(model, nn.MSELoss(reduction="sum"), (first, targets))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    _require(model, second, targets, hesse.parameter_jacobian(model, _squares, (second, targets)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_output_jacobian_equals_a_loop_over_samples(name: str) -> None:
    model, inputs = make(name, 4)
    J = hesse.parameter_jacobian(model, None, inputs if isinstance(inputs, (Tensor, dict)) else (inputs, None))
    rows = oracle.output_rows(model, inputs, 4)
    assert oracle.difference(J.dense(), rows) < TOLERANCE
    assert oracle.difference(J.norms(), rows.norm(dim=2)) < TOLERANCE
    assert oracle.difference(J.gram(), torch.einsum("ncd,mkd->ncmk", rows, rows)) < TOLERANCE


def test_paths_say_how_each_parameter_is_represented() -> None:
    model = Free(lambda s, x: s.a(x) @ s.w**2 + torch.cdist(x, s.v), a=L(5, 4), w=P(4, OUT), v=P(OUT, 5), u=P(2)).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, OUT, dtype=torch.float64)
    J = hesse.parameter_jacobian(model, F.mse_loss, (x, y))
    assert J.paths == {"w": "chained", "v": "masked", "u": "unused", "a.weight": "rule", "a.bias": "rule"}
    routed, inputs = make("boolean routing", 6)
    assert set(hesse.parameter_jacobian(routed, F.mse_loss, (inputs, y)).paths.values()) == {"sample by sample"}


def test_dropout_rows_are_those_of_the_masks_drawn() -> None:
    model = nn.Sequential(L(5, 40), nn.Dropout(0.5), nn.Tanh(), L(40)).double().train()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, OUT, dtype=torch.float64)
    for _ in range(2):
        state = torch.get_rng_state()
        rows = hesse.parameter_jacobian(model, nn.MSELoss(reduction="sum"), (x, y)).dense()
        torch.set_rng_state(state)
        output = model(x)
        params = oracle.trainable(model)
        expected = torch.stack([oracle.gradient(_squares(output[i], y[i]), params) for i in range(6)])
        assert oracle.difference(rows, expected) < TOLERANCE


def test_a_graph_that_changes_between_calls_is_planned_anew() -> None:
    model = Free(lambda s, x: s.b(s.shape(s.a(x)).sum(1)), a=L(6, 6), b=L(6)).double()
    x, y = torch.randn(6, 6, 6, dtype=torch.float64), torch.randn(6, OUT, dtype=torch.float64)
    shapes = [lambda h: h, lambda h: h.transpose(1, 2), lambda h: h.tanh(), lambda h: h.flip(1).cumsum(2), lambda h: h]
    for shape in shapes:
        model.shape = shape
        _require(model, x, y, hesse.parameter_jacobian(model, _squares, (x, y)))


def test_samples_that_data_put_in_order_once_and_not_the_next_time() -> None:
    model, x = make("sorted inside", 6)
    y = torch.randn(6, OUT, dtype=torch.float64)
    for inputs in (x[x[:, 0].argsort()], x, x.flip(0)):
        _require(model, inputs, y, hesse.parameter_jacobian(model, _squares, (inputs, y)))


def test_outputs_in_another_order_are_refused_though_the_middle_one_stays() -> None:
    model = Free(lambda s, x: s.a(x[x[:, 0].argsort()]), a=L()).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    x[:, 0] = torch.tensor([5.0, 1.0, 2.0, 3.0, 4.0, 0.0])
    with pytest.raises(MixedSamplesError, match=r"sample \d depends"):  # which one is told depends on the numbers
        hesse.parameter_jacobian(model, _squares, (x, torch.ones(6, OUT, dtype=torch.float64)))


def test_a_head_of_zeros_hides_no_layout() -> None:
    model, x = make("sequence first", 6)
    y = torch.randn(6, OUT, dtype=torch.float64)
    assert isinstance(model.b, nn.Linear)
    weight = model.b.weight.detach().clone()
    for value in (torch.zeros_like(weight), weight):
        with torch.no_grad():
            model.b.weight.copy_(value)
        _require(model, x, y, hesse.parameter_jacobian(model, _squares, (x, y)))


def _mean_free(s: Any, x: Tensor) -> Tensor:
    hidden = torch.tanh(s.a(x))
    return s.b(hidden - (hidden.detach() if s.detach else hidden).mean(0))


MIXING = {
    "mean over the batch": Free(_mean_free, a=L(5, 4), b=L(4), detach=False),
    "detached mean over the batch": Free(_mean_free, a=L(5, 4), b=L(4), detach=True),
    "softmax over the batch": Free(lambda s, x: s.a(x).softmax(0), a=L()),
    "sum over earlier samples": Free(lambda s, x: s.a(x.cumsum(0)), a=L()),
    "batch statistics": Free(lambda s, x: s.b(F.batch_norm(s.a(x), None, None, training=True)), a=L(5, 4), b=L(4)),
    "samples in another order": Free(lambda s, x: s.a(x[x[:, 0].argsort()]), a=L()),
    "neighbors": Free(lambda s, x: s.a(x) + s.b(x.roll(1, 0)), a=L(), b=L()),
    "detached scale": Free(lambda s, x: s.a(x) * s.a(x).detach().std(), a=L()),
    "attention over the batch": Free(lambda s, x: (x @ x.T).softmax(1) @ s.a(x), a=L()),
}


@pytest.mark.parametrize("zero_head", [False, True])
@pytest.mark.parametrize("name", MIXING)
def test_samples_that_influence_each_other_are_refused(name: str, zero_head: bool) -> None:
    model = MIXING[name].double()
    with torch.no_grad():
        if hasattr(model, "b"):
            model.b.weight.mul_(0 if zero_head else 1)
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, OUT, dtype=torch.float64)
    if zero_head and name == "neighbors":
        return  # a layer of zeros reads no neighbor
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises((MixedSamplesError, UnsupportedError)):
            hesse.parameter_jacobian(model, _squares, (x, y))


def test_a_flag_that_turns_batch_statistics_on_is_noticed() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.b(F.batch_norm(s.a(x), torch.zeros(4).double(), torch.ones(4).double(), training=s.flag))

    model = Free(forward, a=L(5, 4), b=L(4), flag=False).double()
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, OUT, dtype=torch.float64)
    _require(model, x, y, hesse.parameter_jacobian(model, _squares, (x, y)))
    model.flag = True
    with pytest.raises(MixedSamplesError, match="samples influence each other"):
        hesse.parameter_jacobian(model, _squares, (x, y))
