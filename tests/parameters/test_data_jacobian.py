"""The parameter Jacobian of a data set against a plain loop over samples: losses, dtypes, uneven batches, changed data."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hesse
from hesse.check import assert_operator
from hesse.core.errors import (
    DataError,
    MemoryBudgetError,
    NondeterministicError,
    NonFiniteError,
    OneShotDataError,
    StructureError,
    UnsupportedError,
)
from hesse.parameters import DataJacobian
from tests.parameters import oracle

CLASSES, COUNT, WIDTH = 5, 11, 6
WEIGHTS = torch.tensor([0.2, 1.7, 0.6, 2.0, 0.4], dtype=torch.float64)


class Tied(nn.Module):
    """An embedding whose weight is the head's, a convolution over positions, a frozen and an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 4)
        self.mix = nn.Conv1d(4, 4, 3, padding=1)
        self.frozen = nn.Parameter(torch.rand(4) + 0.5, requires_grad=False)
        self.head = nn.Linear(4, CLASSES)
        self.head.weight = self.embedding.weight
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = torch.tanh(self.mix(self.embedding(tokens).mT)) * self.frozen.unsqueeze(1)
        return self.head(mixed.mean(2))


def tied() -> tuple[nn.Module, Tensor]:
    return Tied().double(), torch.randint(0, CLASSES, (COUNT, WIDTH))


def images() -> tuple[nn.Module, Tensor]:
    layers = [nn.Conv2d(1, 3, 3, stride=2), nn.Tanh(), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, CLASSES)]
    return nn.Sequential(*layers).double(), torch.randn(COUNT, 1, 6, 5, dtype=torch.float64)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {"tied": tied, "images": images}
LOSSES: dict[str, tuple[Callable[[Any, Any], Tensor], Callable[[Any, Any], Tensor]]] = {
    "mean": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="sum")),
    "weighted": (nn.CrossEntropyLoss(WEIGHTS, ignore_index=1), nn.CrossEntropyLoss(WEIGHTS, ignore_index=1, reduction="sum")),
    "own": (lambda o, y: (o.logsumexp(1) - o[:, 0] * y).mean(), lambda o, y: (o.logsumexp(1) - o[:, 0] * y).mean()),
}


def case(name: str, seed: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, x = MODELS[name]()
        return model, x, torch.randint(0, CLASSES, (COUNT,))


def batches(x: Tensor, y: Tensor, sizes: tuple[int, ...] = (4, 1, 5, 1)) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def near(found: Any, expected: Tensor, tolerance: float = 1e-11) -> bool:
    return oracle.difference(found, expected) < tolerance


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", MODELS)
def test_quantities_equal_a_loop_over_samples(name: str, loss: str) -> None:
    model, x, y = case(name)
    rows = oracle.loss_rows(model, LOSSES[loss][1], x, y)
    J = hesse.parameter_jacobian(model, LOSSES[loss][0], batches(x, y))
    assert isinstance(J, DataJacobian) and J.shape == rows.shape and J.sizes == (4, 1, 5, 1)
    flat = J.in_space.ravel
    assert near(J.norms(), rows.norm(dim=1)) and near(J.gram(), rows @ rows.T) and near(J.dense(), rows)
    assert near(flat(J.sum_of_squares()), rows.square().sum(0)) and near(flat(J.mean()), rows.mean(0))
    assert near(flat(J.variance()), rows.var(0)) and near(flat(J.variance(correction=0)), rows.var(0, correction=0))
    v, u = torch.randn(rows.shape[1], 2, dtype=torch.float64), torch.randn(COUNT, 3, dtype=torch.float64)
    assert near(J.flat @ v[:, 0], rows @ v[:, 0]) and near(J.flat @ v, rows @ v)
    assert near(J.T.flat @ u[:, 0], rows.T @ u[:, 0]) and near(J.T.flat @ u, rows.T @ u)
    scale = (0.7 / rows.norm(dim=1)).clamp(max=1).nan_to_num(1.0)
    assert near(flat(J.clipped_sum(0.7)), scale @ rows)
    assert near(flat(J.clipped_sum(0.7, weights=u[:, 0])), (scale * u[:, 0]) @ rows)
    start = 0
    for key, p in model.named_parameters():
        if p.requires_grad:
            part = rows[:, start : start + p.numel()]
            assert near(J.as_dict()[key].flatten(1), part) and near(J.norms("parameter")[key], part.norm(dim=1))
            start += p.numel()


@pytest.mark.parametrize("loss", ["mean", "sum", "weighted"])
def test_the_mass_is_that_of_all_data(loss: str) -> None:
    model, x, y = case("tied")
    value, leaves = LOSSES[loss][0](model(x), y), oracle.trainable(model)
    expected = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    J = hesse.parameter_jacobian(model, LOSSES[loss][0], batches(x, y))
    before = J.mass
    found = J.T @ (torch.ones(COUNT, dtype=torch.float64) / J.mass)
    assert all(near(a, b) for a, b in zip(found.values(), expected, strict=True)) and J.mass == before
    known = hesse.parameter_jacobian(model, LOSSES[loss][0], batches(x, y))
    known.norms()
    assert known.mass == pytest.approx(before, rel=1e-14)


@pytest.mark.parametrize("name", MODELS)
def test_outputs(name: str) -> None:
    model, x, y = case(name)
    rows = oracle.output_rows(model, x, COUNT)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    J = hesse.parameter_jacobian(model, None, loader)
    assert J.out_space.shapes[0] == (COUNT, CLASSES) and near(J.dense(), rows) and near(J.norms(), rows.norm(dim=2))
    assert near(J.gram(), torch.einsum("ncd,mkd->ncmk", rows, rows))
    assert near(J.in_space.ravel(J.sum_of_squares()), rows.square().sum((0, 1)))
    own = hesse.parameter_jacobian(model, None, loader, outputs=y)
    assert near(own.dense(), rows[torch.arange(COUNT), y])
    assert near(own.flat @ torch.ones(J.in_space.dim, dtype=torch.float64), rows[torch.arange(COUNT), y].sum(1))


def test_laws() -> None:
    model, x, y = case("images")
    assert_operator(hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), batches(x[:5], y[:5], (3, 2))))


def test_an_autocast_region_lowers_the_model_and_not_the_contractions() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(36, 3))
        x, y = torch.randn(9, 2, 5, 5), torch.randint(0, 3, (9,))
    rows = oracle.loss_rows(model, nn.CrossEntropyLoss(reduction="sum"), x, y).double()
    with torch.autocast("cpu", torch.bfloat16):
        J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y))
        many = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), batches(x, y, (4, 5)))
        found = [J.gram(), many.gram(), hesse.parameter_jacobian(model, None, x).gram().diagonal().sum() * torch.ones(1)]
        inside = J.dense().double()
    assert float((inside - rows).norm() / rows.norm()) < 0.02
    for gram in found[:2]:
        assert float((gram.double() - inside @ inside.T).norm() / (inside @ inside.T).norm()) < 0.01


def test_moments_of_layers_without_shared_positions_add_up() -> None:
    model, x, y = case("images")
    loss = nn.CrossEntropyLoss()
    J = hesse.parameter_jacobian(model, loss, batches(x, y)).select(params=["4.weight"])
    z = model[:4](x).detach()
    logits = model(x).detach()
    g = logits.softmax(1) - nn.functional.one_hot(y, CLASSES)
    found = J.moments()["4.weight"]
    assert near(found.left[0], g.T @ g) and near(found.right[0], z.T @ z) and found.terms == COUNT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    model, x, y = case("tied")
    rows = oracle.loss_rows(model, nn.CrossEntropyLoss(reduction="sum"), x, y)
    J = hesse.parameter_jacobian(model.to(dtype), nn.CrossEntropyLoss(), batches(x, y))
    flat = J.in_space.ravel
    pairs = [(J.dense(), rows), (J.norms(), rows.norm(dim=1)), (J.gram(), rows @ rows.T), (flat(J.mean()), rows.mean(0))]
    for found, expected in [*pairs, (flat(J.variance()), rows.var(0)), (flat(J.sum_of_squares()), rows.square().sum(0))]:
        assert found.dtype == dtype
        assert float((found.double() - expected).norm()) < 40 * torch.finfo(dtype).eps * float(expected.norm())


def test_derivatives_by_16_bit_vectors_are_added_up_in_32_bits() -> None:
    """In 16 bits a sum of 300 alike stands still."""
    x = torch.rand(600, 3, generator=torch.Generator().manual_seed(0)).add_(1).bfloat16()
    J = hesse.parameter_jacobian(nn.Linear(3, 1, bias=False).bfloat16(), None, [(part, None) for part in x.split(2)])
    v = {"weight": torch.ones(1, 3, dtype=torch.bfloat16, requires_grad=True)}
    V = {"weight": torch.ones(2, 1, 3, dtype=torch.bfloat16, requires_grad=True)}
    (J @ v).float().sum().backward()
    (J @ V).float().sum().backward()
    expected = x.double().sum(0)
    assert v["weight"].grad is not None and V["weight"].grad is not None
    for found in (v["weight"].grad, *V["weight"].grad):
        assert float(((found.double() - expected) / expected).abs().max()) < 4 * torch.finfo(torch.bfloat16).eps


def test_blocks_skip_and_split() -> None:
    model, x, y = case("tied")
    rows = oracle.loss_rows(model, nn.CrossEntropyLoss(reduction="sum"), x, y)
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), batches(x, y))
    places = [place for place, _ in J.blocks()]
    assert places == [slice(0, 4), slice(4, 5), slice(5, 10), slice(10, 11)]
    for place, block in J.blocks(at_once=2):
        assert near(block.dense(), rows[place]) and block.count <= 2 and torch.equal(block.hashes, J.hashes[place])
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    assert [place for place, _ in J.blocks(skip=lambda place: place.start != 5)] == [slice(5, 10)]
    handle.remove()
    assert calls == [5]


def test_one_batch_comes_in_blocks_too() -> None:
    model, x, y = case("images")
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), (x, y))
    rows = J.dense()
    assert torch.equal(torch.cat([block.dense() for _, block in J.blocks(at_once=3)]), rows)
    assert [place for place, _ in J.blocks()] == [slice(0, COUNT)] and J.recipe is not None and J.hashes is not None
    assert len(J.hashes) == COUNT and J.select([1, 2]).hashes is None


class Changing:
    """Batches of which some change, come in another order, or are missing in later passes."""

    def __init__(self, first: list[Any], later: list[Any]) -> None:
        self.passes = [first, later]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.passes.pop(0) if len(self.passes) > 1 else self.passes[0])


@pytest.mark.parametrize("kind", ["order", "inside", "content", "targets", "fewer", "more"])
def test_other_data_in_a_later_pass_are_refused(kind: str) -> None:
    model, x, y = case("tied")
    data = batches(x, y)
    other = {
        "order": data[::-1],
        "inside": [(data[0][0].flip(0), data[0][1].flip(0)), *data[1:]],
        "content": [*data[:2], ((data[2][0] + 1) % CLASSES, data[2][1]), data[3]],
        "targets": [*data[:3], (data[3][0], (data[3][1] + 1) % CLASSES)],
        "fewer": data[:3],
        "more": [*data, data[0]],
    }[kind]
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), Changing(data, other))
    with pytest.raises(DataError, match=r"batch \d|batches"):
        J.norms()


def test_what_cannot_be_read_again_or_answers_anew_is_refused() -> None:
    model, x, y = case("images")
    loss = nn.CrossEntropyLoss()
    with pytest.raises(OneShotDataError):
        hesse.parameter_jacobian(model, loss, iter(batches(x, y)))
    with pytest.raises(DataError, match="int as data"):
        hesse.parameter_jacobian(model, loss, 5)
    with pytest.raises(DataError, match="without a batch"):
        hesse.parameter_jacobian(model, loss, [])
    with pytest.raises(NondeterministicError):
        hesse.parameter_jacobian(nn.Sequential(model, nn.Dropout(0.5)), loss, batches(x, y))
    with pytest.raises(StructureError, match="create_graph"):
        hesse.parameter_jacobian(model, loss, batches(x, y), create_graph=True)
    J = hesse.parameter_jacobian(model, loss, batches(x, y))
    with pytest.raises(UnsupportedError, match="choice of samples"):
        J.select([1])
    with torch.no_grad():
        model[0].weight.add_(0.1)
    for quantity in (J.norms, J.gram):
        with pytest.raises(DataError, match=r"1 of 6 changed in place since: '0\.weight'\n"):
            quantity()


def test_parameters_written_to_are_counted_once_and_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), [(torch.randn(5, 4), torch.arange(5) % 2)], params=["0.weight"])
    model.load_state_dict(model.state_dict())
    with pytest.raises(DataError, match=r"6 of 6 changed in place since: '0.weight', '0.bias', '1.weight', \.\.\.\n"):
        J.norms()


@pytest.mark.parametrize("records", ["kept", "streamed"])
def test_a_batch_made_in_inference_mode(records: Any) -> None:
    model, x, y = case("images")
    expected = oracle.loss_rows(model, nn.CrossEntropyLoss(), x, y)
    with torch.inference_mode():
        a, b = x.clone(), y.clone()
    assert a.is_inference() and b.is_inference()
    for data in ((a, b), (x, b), (a, y), [(a[:4], b[:4]), (a[4:], y[4:])]):
        J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), data, records=records)
        assert oracle.difference(J.dense(), expected) < 1e-12


class Masked(nn.Module):
    """Normalized by running statistics, masked by a buffer, scaled by a frozen parameter; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0]))
        self.scale, self.calls = nn.Parameter(torch.rand(4) + 0.5, requires_grad=False), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(torch.relu(self.norm(self.body(x)) * self.mask * self.scale))


def masked() -> tuple[Any, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        x, y = torch.randn(COUNT, 6, dtype=torch.float64), torch.randint(0, CLASSES, (COUNT,))
        return Masked().double().eval(), x, y


class Weighted:
    """A loss that is an object, and remembers its last value."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.last = weight, torch.zeros(())

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        value = (output.logsumexp(1) - output[torch.arange(len(target)), target] * self.weight[target]).sum()
        self.last = value.detach()
        return value


def written(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.mul_(1.25)


def statistics(model: Any, loss: Any) -> None:
    model.norm.train()
    model.norm(torch.randn(7, 4).double())
    model.norm.eval()


def replaced(model: Any, loss: Any) -> None:
    model.head = nn.Linear(4, CLASSES).double()


def frozen(model: Any, loss: Any) -> None:
    model.scale = nn.Parameter(model.scale * 2, requires_grad=False)


CHANGES: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "statistics": (statistics, "model.norm.running_mean"),
    "a buffer": (lambda model, loss: written(model.mask), "model.mask"),
    "another buffer": (lambda model, loss: setattr(model, "mask", model.mask * 2), "model.mask"),
    "a module": (replaced, "model.head"),
    "an option": (lambda model, loss: setattr(model.norm, "eps", 0.1), "model.norm.eps' is 0.1 now, and was 1e-05"),
    "the mode": (lambda model, loss: model.norm.train(), "model.norm.training"),
    "a frozen parameter": (frozen, "model.scale' was written to or replaced"),
    "the weights of the loss": (lambda model, loss: written(loss.weight), "loss.weight"),
    "an option of the loss": (lambda model, loss: setattr(loss, "label_smoothing", 0.1), "loss.label_smoothing"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_model_or_loss_is_refused(kind: str) -> None:
    (model, x, y), (change, found) = masked(), CHANGES[kind]
    loss = nn.CrossEntropyLoss(WEIGHTS.clone())
    J = hesse.parameter_jacobian(model, loss, batches(x, y))
    before = J.dense()
    assert torch.equal(J.dense(), before)
    half_way = J.blocks()
    next(half_way)
    change(model, loss)
    for work in (J.norms, J.gram, lambda: next(half_way), lambda: J.select(params=["body.weight"])):
        with pytest.raises(DataError, match=found):
            work()
    fresh = hesse.parameter_jacobian(model.eval(), loss, batches(x, y))
    assert kind == "the mode" or not torch.equal(fresh.dense(), before)


def test_a_change_during_the_last_batch_is_refused() -> None:
    model, x, y = masked()
    with pytest.raises(DataError, match=r"model\.mask"):
        for place, _ in hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), batches(x, y)).blocks():
            if place.stop == COUNT:
                written(model.mask)


class Positioned(nn.Module):
    """Registers a buffer when it runs first, counts its calls in another, and lets a third grow with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, CLASSES)
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("cache", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "pos"):
            self.register_buffer("pos", torch.arange(1.0, CLASSES + 1).double(), persistent=False)
        self.calls += 1
        if len(self.cache) < len(x):
            self.cache = torch.ones(len(x))
        return self.body(x) * self.pos * self.cache[: len(x), None]


def test_buffers_that_the_first_run_registers_are_no_change() -> None:
    _, x, y = masked()
    model: Any = Positioned().double()
    loss = nn.CrossEntropyLoss()
    J = hesse.parameter_jacobian(model, loss, batches(x, y))
    weight, bias, positions = model.body.weight, model.body.bias, torch.arange(1.0, CLASSES + 1).double()
    expected = []
    for sample, target in zip(x, y, strict=True):
        value = loss((sample @ weight.T + bias) * positions, target)
        expected.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, (weight, bias))]))
    assert near(J.dense(), torch.stack(expected)) and torch.equal(J.norms(), J.norms())
    assert model.calls == 0 and len(model.cache) == 1
    f, params = hesse.functional(model)
    f(params, x)
    assert near(J.gram(), torch.stack(expected) @ torch.stack(expected).T)
    model.pos.mul_(2)
    with pytest.raises(DataError, match=r"other numbers in the buffers 'model\.pos'"):
        J.norms()


def test_buffers_that_a_run_of_the_user_writes_are_a_change() -> None:
    _, x, y = masked()
    model: Any = Positioned().double()
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), batches(x, y))
    model(x)
    with pytest.raises(DataError, match=r"other numbers in the buffers 'model\.calls', 'model\.cache'"):
        J.norms()
    model.register_buffer("mine", torch.ones(2))
    fresh = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), batches(x, y))
    model.register_buffer("later", torch.ones(2))
    with pytest.raises(DataError, match=r"found: buffers 'model\.later' that appeared"):
        fresh.norms()


class Widening(nn.Module):
    """Registers a buffer when it first meets a sample that asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if bool((x.detach() > 2).any()) and not hasattr(self, "pos"):
            self.register_buffer("pos", torch.arange(1.0, CLASSES + 1).double(), persistent=False)
        return self.body(x)


@pytest.mark.parametrize("ask", ["norms", "gram", "blocks"])
def test_buffers_that_a_later_batch_registers_are_no_change(ask: str) -> None:
    x = torch.linspace(-1, 1, 30).double().reshape(5, 6)
    data = [(x, torch.arange(5) % CLASSES), (x[:3] + 2, torch.arange(3)), (x[:2], torch.arange(2))]
    model: Any = Widening().double()
    rows = torch.cat([hesse.parameter_jacobian(model.body, nn.CrossEntropyLoss(), batch).dense() for batch in data])
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), data)
    assert "pos" not in model._buffers
    if ask == "norms":
        assert near(J.norms(), rows.norm(dim=1))
    elif ask == "gram":
        assert near(J.gram(), rows @ rows.T)
    else:
        assert near(torch.cat([block.dense() for _, block in J.blocks()]), rows)
    assert near(J.dense(), rows) and len(model.pos) == CLASSES
    model.pos.mul_(2)
    with pytest.raises(DataError, match=r"other numbers in the buffers 'model\.pos'"):
        J.norms()
    model.pos.div_(2)
    J.norms()
    model.register_buffer("mine", torch.ones(2))
    with pytest.raises(DataError, match=r"found: buffers 'model\.mine' that appeared"):
        J.norms()


def test_what_the_forward_pass_does_not_read_may_change() -> None:
    _, x, y = masked()
    model: Any = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, CLASSES)).double().eval()
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), batches(x, y))
    before = J.dense()
    model[0].tag, model[1].momentum, model[2].p = "first", 0.5, 0.1
    model[1].num_batches_tracked += 1
    assert torch.equal(J.dense(), before)
    assert torch.equal(hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), batches(x, y)).dense(), before)


@pytest.mark.parametrize("kind", ["closure", "default", "partial", "object", "method", "function of parameters"])
def test_changes_of_what_functions_hold_are_refused(kind: str) -> None:
    _, x, y = masked()
    module, weight = nn.Linear(6, CLASSES).double(), WEIGHTS.clone()
    losses: dict[str, Any] = {
        "closure": lambda output, target: (output.logsumexp(1) * weight[target]).sum(),
        "default": lambda output, target, weight=weight: (output.logsumexp(1) * weight[target]).sum(),
        "partial": functools.partial(nn.functional.cross_entropy, weight=weight),
        "object": Weighted(weight),
        "method": Weighted(weight).__call__,
        "function of parameters": nn.CrossEntropyLoss(),
    }
    model: Any = (lambda p, x: x @ p["w"] * weight, {"w": module.weight.detach().T.clone()})
    J = hesse.parameter_jacobian(model if "parameters" in kind else module, losses[kind], batches(x, y))
    assert torch.equal(J.norms(), J.norms())
    written(weight)
    with pytest.raises(DataError, match=r"weight' was written to"):
        J.norms()


def test_errors_say_which_batch() -> None:
    model, x, y = case("images")
    good, loss = (x[:4], y[:4]), nn.CrossEntropyLoss()
    wrong: list[tuple[Any, type[Exception], str]] = [
        ((x[:0], y[:0]), DataError, "batch 2: a batch of size 0"),
        ((x[:3], y[:2]), DataError, "batch 2: target has 2 rows where input has 3"),
        ((x[:2] * torch.nan, y[:2]), NonFiniteError, "batch 2: NaN in input"),
        (7, DataError, "batch 2: a int as a batch"),
    ]
    for batch, error, found in wrong:
        with pytest.raises(error, match=found):
            hesse.parameter_jacobian(model, loss, [good, good, batch, good])
    J = hesse.parameter_jacobian(model, loss, Changing([good, good], [good, 7]))
    with pytest.raises(DataError, match="batch 1: a int as a batch"):
        J.norms()


def test_names_are_no_samples() -> None:
    model, x, y = case("images")
    for data in (batches(x, y), (x, y)):
        J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), data)
        for names in (["0.weight"], "0.weight"):
            with pytest.raises(StructureError, match=r"the text .*0\.weight.*\n.*params="):
                J.select(names)
        assert J.select(params="0.weight").in_space.names == ("0.weight",)


@pytest.mark.parametrize("of", ["loss", "output"])
def test_rows_go_to_arrays(of: str, tmp_path: Path) -> None:
    model, x, y = case("images")
    for data in (batches(x, y), (x, y)):
        J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss() if of == "loss" else None, data)
        rows, P = J.dense(), hesse.random_projection(J, 4)
        shape = tuple(rows.shape)
        file = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=np.float64, shape=shape)
        assert J.dense(out=file) is file and np.array_equal(file, rows.numpy())
        strided = np.zeros((*shape, 2))[..., 1]
        assert J.dense(out=strided) is strided and np.array_equal(strided, rows.numpy())
        small = np.zeros((*shape[:-1], 4))
        assert J.project(P, out=small) is small and np.array_equal(small, J.project(P).numpy())
        frozen = np.zeros(shape)
        frozen.flags.writeable = False
        wrong = [frozen, np.zeros(shape, np.float32), np.zeros(shape[::-1]), torch.zeros(shape[-1:]).double().expand(shape),
                 [1], np.zeros(shape)[::-1], np.zeros(shape, str), torch.zeros(shape, dtype=torch.int64)]  # fmt: skip
        for out in wrong:
            with pytest.raises(StructureError, match=r"dense\(out=\) writes into a tensor or NumPy array"):
                J.dense(out=out)
            with pytest.raises(StructureError, match=r"project\(out=\) writes into a tensor or NumPy array"):
                J.project(P, out=out)
        leaf = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        assert J.dense(out=leaf) is leaf and torch.equal(leaf, rows)


def test_some_parameters() -> None:
    model, x, y = case("images")
    rows = oracle.loss_rows(model, nn.CrossEntropyLoss(reduction="sum"), x, y)
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), batches(x, y))
    J = J.select(params=lambda name, p: name.startswith("0."))
    assert J.in_space.names == ("0.weight", "0.bias") and near(J.dense(), rows[:, : J.in_space.dim])
    assert near(J.gram(), rows[:, : J.in_space.dim] @ rows[:, : J.in_space.dim].T)


@pytest.mark.parametrize("records", ["kept", "streamed"])
def test_a_batch_too_large_for_the_budget_is_taken_in_parts(records: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(50, 60), nn.Tanh(), nn.Linear(60, 3)).double()
        x, y = torch.randn(1500, 50, dtype=torch.float64), torch.randint(0, 3, (1500,))
    loss = nn.CrossEntropyLoss(torch.tensor([0.3, 2.0, 1.1], dtype=torch.float64))
    whole = hesse.parameter_jacobian(model, loss, (x, y))
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    J = hesse.parameter_jacobian(model, loss, (x, y), memory="3MiB", records=records)
    assert isinstance(J, DataJacobian) and J.samples_at_once is not None and J.samples_at_once < 1500
    assert near(J.norms(), whole.norms()) and J.mass == pytest.approx(whole.mass, rel=1e-12)
    assert near(J.in_space.ravel(J.sum_of_squares()), J.in_space.ravel(whole.sum_of_squares()))
    handle.remove()
    assert 1 < max(seen) < 1500
    with pytest.raises(MemoryBudgetError):
        J.dense()
    assert isinstance(hesse.parameter_jacobian(model, loss, (x, y), memory="1GiB"), hesse.ParameterJacobian)


def test_repr() -> None:
    model, x, y = case("images")
    J = hesse.parameter_jacobian(model, nn.CrossEntropyLoss(), batches(x, y))
    assert repr(J) == "DataJacobian(11 x 107 of the loss by 6 parameters, over 4 batches)"


@pytest.mark.parametrize("kind", ["data set", "kept", "streamed"])
def test_a_deep_copy_gives_the_same_and_is_refused_where_the_model_or_the_batch_changes(kind: Any) -> None:
    model, x, y = case("images")
    loss = nn.CrossEntropyLoss(reduction="sum")
    with torch.no_grad():
        model[0].weight.add_(0.1)  # a version that copies do not have
    if kind == "data set":
        J = hesse.parameter_jacobian(model, loss, batches(x, y))
    else:
        J = hesse.parameter_jacobian(model, loss, (x, y), records=kind)
    expected = oracle.loss_rows(model, loss, x, y)
    pair = copy.deepcopy((J, [J]))
    assert pair[1][0] is pair[0] is not J
    assert oracle.difference(pair[0].gram(), expected @ expected.T) < 1e-12
    assert oracle.difference(pair[0].norms(), expected.norm(dim=1)) < 1e-12
    x.mul_(2)
    if kind == "kept":  # whose forms may be copies of what the batch was
        with contextlib.suppress(DataError):
            assert oracle.difference(pair[0].norms(), expected.norm(dim=1)) < 1e-12
    else:
        with pytest.raises(DataError):
            pair[0].norms()
