"""`outputs=` picks rows of the output Jacobian, `select` samples and parameters, `dense(out=)` a place to write to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.core.errors import StructureError
from tests.parameters import oracle
from tests.parameters.special import Free, L, P

N = 4


def _model() -> nn.Module:
    return Free(lambda s, x: s.b(torch.tanh(s.a(x))), a=L(5, 4), b=L(4), idle=P(2)).double()


def _case(positions: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
    """A model, inputs, and rows ``[N, positions * 3, D]`` in the order of ``output[i].flatten()``."""
    model = _model()
    x = torch.randn(N, *([positions] if positions > 1 else []), 5, dtype=torch.float64)
    return model, x, oracle.output_rows(model, x, N)


@pytest.mark.parametrize("positions", [1, 2])
@pytest.mark.parametrize("pick", [0, 2, -1, torch.tensor(1), True + 1])
def test_one_output(pick: Any, positions: int) -> None:
    model, x, rows = _case(positions)
    J = hesse.parameter_jacobian(model, None, x, outputs=pick)
    assert J.dense().shape == (N, rows.shape[2])
    assert oracle.difference(J.dense(), rows[:, int(pick)]) < 1e-12
    assert oracle.difference(J.gram(), rows[:, int(pick)] @ rows[:, int(pick)].mT) < 1e-12


@pytest.mark.parametrize("positions", [1, 2])
@pytest.mark.parametrize("pick", [[1], [2, 0], [0, 0, -1], [0, 1, 2, 0], (1, 2), range(2)])
def test_a_list_of_outputs_is_the_same_for_all_samples(pick: Any, positions: int) -> None:
    model, x, rows = _case(positions)
    J = hesse.parameter_jacobian(model, None, x, outputs=pick)
    expected = rows[:, list(pick)]
    assert oracle.difference(J.dense(), expected) < 1e-12
    assert oracle.difference(J.gram(), torch.einsum("nkd,mld->nkml", expected, expected)) < 1e-12
    assert oracle.difference(J.in_space.ravel(J.variance()), expected.flatten(0, 1).var(0)) < 1e-12


def test_each_sample_its_own_outputs() -> None:
    model, x, rows = _case(2)
    one, several = torch.tensor([0, 5, -1, -6]), torch.tensor([[1, 0], [5, 5], [-1, 2], [3, -6]])
    for dtype in (torch.int64, torch.int32):
        J = hesse.parameter_jacobian(model, None, x, outputs=one.to(dtype))
        assert oracle.difference(J.dense(), rows[torch.arange(N), one]) < 1e-12
        J = hesse.parameter_jacobian(model, None, x, outputs=several.to(dtype))
        assert oracle.difference(J.dense(), rows[torch.arange(N).unsqueeze(1), several]) < 1e-12
    K = hesse.parameter_jacobian(model, None, x, outputs=one)
    expected = torch.einsum("nkd,md->nkm", rows[torch.arange(N).unsqueeze(1), several], rows[torch.arange(N), one])
    assert oracle.difference(J.gram(K), expected) < 1e-12


@pytest.mark.parametrize("pick", [
    3, -4, [0, 3], [-4], [], [[0], [1]], 1.0, [0.5], True, [True, False], torch.tensor([0, 1]), torch.zeros(N),
    torch.zeros(N, dtype=torch.bool), torch.tensor([0, 1, 2, 3]), torch.zeros(N, 0, dtype=torch.long),
    torch.zeros(N, 1, 1, dtype=torch.long), torch.zeros(N + 1, 2, dtype=torch.long),
])  # fmt: skip
def test_outputs_that_are_not_there(pick: Any) -> None:
    model, x, _ = _case()
    with pytest.raises(StructureError, match="picks among the 3 elements of each of 4 outputs"):
        hesse.parameter_jacobian(model, None, x, outputs=pick)


def test_options_that_exclude_each_other() -> None:
    model, x, _ = _case()
    with pytest.raises(StructureError, match="outputs= chooses rows of an output Jacobian"):
        hesse.parameter_jacobian(model, nn.MSELoss(), (x, torch.zeros(N, 3).double()), outputs=0)
    wrong: list[dict[str, Any]] = [{"records": "freed"}, {"records": "streamed", "create_graph": True}]
    for options in wrong:
        with pytest.raises(StructureError, match="records= is 'kept' or 'streamed'"):
            hesse.parameter_jacobian(model, None, x, **options)


@pytest.mark.parametrize("pick", [
    slice(1, 3), slice(0, None, 2), [2], [3, 0, 0], [-1, -4], 2, -1, torch.tensor([1, 3]),
    torch.tensor([True, False, True, False]), [False, True, True, True], torch.tensor(3), range(2),
])  # fmt: skip
@pytest.mark.parametrize("records", ["kept", "streamed"])
def test_selected_samples(pick: Any, records: Any) -> None:
    model, x, rows = _case(2)
    numbers = torch.arange(N)[list(pick) if isinstance(pick, range) else pick].reshape(-1)
    J = hesse.parameter_jacobian(model, None, x, records=records)
    S, expected = J.select(pick), rows.unflatten(1, (2, 3))[numbers]
    assert oracle.difference(S.dense(), expected) < 1e-12
    assert oracle.difference(S.norms(), expected.norm(dim=3)) < 1e-12
    assert oracle.difference(S.gram(), torch.einsum("nabd,mced->nabmce", expected, expected)) < 1e-12
    assert oracle.difference(J.gram(S), torch.einsum("nabd,mced->nabmce", rows.unflatten(1, (2, 3)), expected)) < 1e-12
    again = S.select([0], params=["b.bias"])
    assert oracle.difference(again.dense(), expected[:1, ..., _place(model, "b.bias")]) < 1e-12


def _place(model: nn.Module, name: str) -> slice:
    start = 0
    for key, p in model.named_parameters():
        if key == name:
            return slice(start, start + p.numel())
        start += p.numel()
    raise KeyError(name)


@pytest.mark.parametrize("pick", [
    [4], [-5], [], torch.ones(3, dtype=torch.bool), torch.zeros(N, dtype=torch.bool), slice(4, 4), [0.5], "a", [None],
    slice(0, 2, -1),
])  # fmt: skip
def test_samples_that_are_not_there(pick: Any) -> None:
    model, x, _ = _case()
    J = hesse.parameter_jacobian(model, None, x)
    with pytest.raises(StructureError, match=r"Rows are chosen|choice of rows"):
        J.select(pick)


@pytest.mark.parametrize("records", ["kept", "streamed"])
def test_selected_parameters(records: Any) -> None:
    model, x, rows = _case()
    J = hesse.parameter_jacobian(model, None, x, records=records)
    for names, chosen in (
        (["b.weight", "a.bias"], ["a.bias", "b.weight"]),  # in the parameters' order
        (("idle",), ["idle"]),
        (lambda name, p: name.startswith("a") or p.ndim == 1, ["a.weight", "a.bias", "b.bias", "idle"]),
        ({"b.bias", "idle"}, ["b.bias", "idle"]),
    ):
        S = J.select(params=names)
        order = [name for name, _ in model.named_parameters() if name in chosen]
        expected = torch.cat([rows[..., _place(model, name)] for name in order], 2)
        assert oracle.difference(S.dense(), expected) < 1e-12
        assert oracle.difference(S.norms(), expected.norm(dim=2)) < 1e-12
        assert oracle.difference(S.gram(), torch.einsum("ncd,mkd->ncmk", expected, expected)) < 1e-12
        assert list(S.paths) and set(S.paths) == set(order) and list(S.norms("parameter")) == order
        assert S.shape == (N * 3, expected.shape[2]) and S.mass == J.mass
        with pytest.raises(StructureError, match="same parameters"):
            S.gram(J)
    for wrong in (["c"], [], lambda name, p: False, ["a.weight", "c"]):
        with pytest.raises(StructureError, match="names of parameters"):
            J.select(params=wrong)


def test_a_selection_of_loss_rows_keeps_the_mass() -> None:
    model, x, _ = _case()
    loss, y = nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0]).double()), torch.tensor([0, 2, 1, 1])
    J = hesse.parameter_jacobian(model, loss, (x, y))
    assert J.select([1, 2]).mass == J.mass == pytest.approx(5.2)
    rows = oracle.loss_rows(model, lambda o, t: nn.functional.cross_entropy(o, t, loss.weight, reduction="sum"), x, y)
    S = J.select([1, 2])
    assert oracle.difference(S.T.flat @ torch.tensor([2.0, -1.0]).double(), 2 * rows[1] - rows[2]) < 1e-12


def test_a_buffer_that_does_not_fit() -> None:
    model, x, rows = _case()
    J = hesse.parameter_jacobian(model, None, x)
    fits = torch.empty(rows.shape, dtype=torch.float64)
    for wrong in (fits[:3], fits.flatten(0, 1), fits.mT, fits.float(), fits.to("meta")):
        with pytest.raises(StructureError) as caught:
            J.dense(out=wrong)
        text = str(caught.value)
        assert str(tuple(wrong.shape)) in text and str(wrong.dtype) in text and str(tuple(rows.shape)) in text
    assert torch.equal(J.dense(out=fits), J.dense())


def test_a_buffer_with_its_outputs_in_another_order() -> None:
    model, x, rows = _case(2)
    J = hesse.parameter_jacobian(model, None, x)
    out = torch.empty(N, 3, 2, rows.shape[2], dtype=torch.float64).transpose(1, 2)
    assert oracle.difference(J.dense(out=out).flatten(1, 2), rows) < 1e-12


@pytest.mark.parametrize("choice", [torch.tensor([0, 2, 1, 2]), torch.tensor([[0, 1], [2, 1], [1, 1], [0, 2]]), [0, 2]])
def test_a_choice_that_is_written_to_afterwards_stays_as_it_was(choice: Any) -> None:
    model, x, rows = _case()
    choice = copy.deepcopy(choice)  # which pytest keeps
    table = choice if isinstance(choice, Tensor) else torch.tensor(choice).expand(N, 2)
    expected = rows[torch.arange(N).reshape(-1, *[1] * (table.ndim - 1)), table].clone()
    data = [(x[:3], None), (x[3:], None)]
    ways: list[Any] = [(given, records) for given in (x, data) for records in ("kept", "streamed")]
    made = [hesse.parameter_jacobian(model, None, given, outputs=choice, records=records) for given, records in ways]
    made.append(hesse.ntk(model, data, outputs=choice).left)
    if isinstance(choice, Tensor):
        choice.copy_((choice.clone() + 1) % 3)
    else:
        choice[0] = 1
    for J in made:
        assert oracle.difference(J.dense(), expected) < 1e-12
        assert oracle.difference(J.gram().reshape(len(expected.flatten(0, -2)), -1), _products(expected)) < 1e-12


def _products(rows: Tensor) -> Tensor:
    flat = rows.flatten(0, -2)
    return flat @ flat.T
