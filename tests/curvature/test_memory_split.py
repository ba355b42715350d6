"""Matrices of batches that do not fit: slices add up to the whole, failures halve them, mixed samples are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.core.errors import DataError, MemoryBudgetError
from hesse.curvature.gauss_newton import GaussNewton
from hesse.curvature.kronecker_pass import How
from hesse.curvature.slicing import Slicing
from hesse.curvature.split import SplitBatch
from hesse.operators.spread import Spread
from tests.curvature import references
from tests.parameters import oracle

MIB = 2**20
WEIGHT = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64)
LOSSES: dict[str, nn.Module] = {
    "weights and ignored targets": nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1),
    "sum": nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1, reduction="sum"),
    "smoothing": nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1),
}


def problem(count: int = 11) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Targets in a row, so that some slices of three have nothing but ignored ones."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, (torch.randn(count, 4, dtype=torch.float64), torch.tensor([0, 2, 0, 2, 1, 1, 1, 1, 0, 2, 1])[:count])


@pytest.fixture
def slices_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slicing, "at_once", lambda self, batch: 3)


def sizes_of_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each run of a Kronecker-factored matrix works on, from now on."""
    sizes: list[int] = []
    plain = How.rows

    def rows(self: How, model: Any, loss: Any, piece: Any, **options: Any) -> Any:
        sizes.append(len(piece[0]))
        return plain(self, model, loss, piece, **options)

    monkeypatch.setattr(How, "rows", rows)
    return sizes


@pytest.mark.usefixtures("slices_of_three")
class TestSlicesAddUp:
    @pytest.mark.parametrize("name", LOSSES)
    def test_hessian_and_gauss_newton(self, name: str) -> None:
        model, batch = problem()
        for make, reference in ((hesse.loss_hessian, references.hessian), (hesse.ggn, references.ggn)):
            found = make(model, LOSSES[name], batch)
            assert isinstance(found, SplitBatch)
            expected = reference(model, LOSSES[name], *batch)
            assert oracle.difference(hesse.dense(found), expected) < 1e-10
            assert oracle.difference(hesse.diagonal(found), expected.diagonal()) < 1e-10
            assert hesse.trace(found, method="exact").value == pytest.approx(float(expected.trace()), rel=1e-10)
            assert found.mass == pytest.approx(make(model, LOSSES[name], [batch]).mass)  # pyright: ignore[reportAttributeAccessIssue]

    @pytest.mark.parametrize("labels", ["true", "tensor"])
    def test_empirical(self, labels: str) -> None:
        model, (x, y) = problem()
        given = "true" if labels == "true" else y.roll(2)
        used = y if labels == "true" else y.roll(2)
        by_sample = nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum")
        loss = nn.CrossEntropyLoss(weight=WEIGHT)
        found = hesse.fisher(model, loss, (x, y), kind="empirical", labels=given)
        expected = references.outer_products(model, by_sample, x, used) / WEIGHT[used].sum()
        assert oracle.difference(hesse.dense(found), expected) < 1e-10

    def test_sampled_is_the_same_matrix_whatever_the_slices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, batch = problem()
        found = []
        for size in (3, None):
            monkeypatch.setattr(Slicing, "at_once", lambda self, batch, size=size: size)
            generator = torch.Generator().manual_seed(5)
            found.append(hesse.dense(hesse.fisher(model, LOSSES["sum"], batch, kind="sampled", generator=generator)))
        assert oracle.difference(*found) < 1e-12

    def test_gradient(self) -> None:
        model, (x, y) = problem()
        loss = LOSSES["weights and ignored targets"]
        expected = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
        found = hesse.loss_hessian(model, loss, (x, y)).gradient  # pyright: ignore[reportAttributeAccessIssue]
        for a, b in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)

    def test_batches_of_a_data_set_are_split_too(self) -> None:
        model, (x, y) = problem()
        loss = LOSSES["weights and ignored targets"]
        found = hesse.ggn(model, loss, [(x[:4], y[:4]), (x[4:], y[4:])])
        assert oracle.difference(hesse.dense(found), references.ggn(model, loss, x, y)) < 1e-10

    @pytest.mark.parametrize("make", [hesse.kfac, hesse.ekfac])
    def test_kronecker_factors(self, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        model, batch = problem()
        sizes = sizes_of_passes(monkeypatch)
        with hesse.memory("1GiB"):
            found = make(model, LOSSES["smoothing"], batch, kind="ggn")
        assert set(sizes) == {2, 3}
        sizes.clear()
        by_argument = make(model, LOSSES["smoothing"], batch, kind="ggn", memory="1GiB")
        assert set(sizes) == {2, 3}
        monkeypatch.undo()
        whole = make(model, LOSSES["smoothing"], batch, kind="ggn")
        for matrix in (found, by_argument):
            assert oracle.difference(hesse.dense(matrix), hesse.dense(whole)) < 1e-10


    @pytest.mark.parametrize("make", [hesse.kfac, hesse.ekfac])
    def test_kronecker_factors_of_spread_data(self, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        model, (x, y) = problem()
        batches = [(x[:4], y[:4]), (x[4:], y[4:])]
        whole = hesse.dense(make(model, LOSSES["smoothing"], (x, y), kind="ggn"))
        sizes = sizes_of_passes(monkeypatch)
        found = make(model, LOSSES["smoothing"], Alone(batches), kind="ggn", memory="1GiB")
        assert set(sizes) == {2, 3}
        assert oracle.difference(hesse.dense(found), whole) < 1e-10


class Alone(Spread):
    """Data spread over one process."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def asking(self, what: str) -> Any:
        return nullcontext()

    def average(self, make: Any, **options: Any) -> Any:
        return hesse.average(make, self.batches)

    def add_up(self, what: str, work: Any) -> Any:
        return work()

    def require_same(self, what: str, tensors: Any) -> None:
        pass

    def _require_same_model(self, model: Any, tensors: Any) -> None:
        pass

    def take_first(self, what: str, tensors: Any) -> Any:
        return dict(tensors)


class TestMixed:
    """Where samples influence each other the whole batch is needed, and the error says how much that takes."""

    class Centered(nn.Module):
        def __init__(self, strength: float) -> None:
            super().__init__()
            self.body, self.strength = nn.Linear(4, 3).double(), nn.Parameter(torch.tensor(strength, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            out = self.body(x)
            return out - self.strength * out.mean(0)

    @pytest.mark.parametrize("strength", [1.0, 1e-4, 0.0], ids=["strong", "weak", "in the derivative alone"])
    def test_refused(self, strength: float, slices_of_three: None) -> None:
        model, (_, batch) = self.Centered(strength), problem()
        for make in (hesse.loss_hessian, hesse.ggn):
            with pytest.raises(MemoryBudgetError, match="influence each other"):
                make(model, LOSSES["sum"], batch, memory=10_000)

    @pytest.mark.parametrize("first", ["ignored", "alike", "all but two ignored", "repeated"])
    def test_refused_whatever_the_first_samples_are(self, first: str, slices_of_three: None) -> None:
        model, (x, y) = self.Centered(1.0), problem()[1]
        x, y = x.clone(), y.fill_(0)
        if first == "repeated":
            x, y = x[:4].repeat(4, 1), y[:1].repeat(16)
        elif first == "alike":
            x[:8] = x[0]
        else:
            y[: 5 if first == "ignored" else 9] = 1
        for loss in (LOSSES["sum"], LOSSES["weights and ignored targets"]):
            for make in (hesse.loss_hessian, hesse.ggn):
                with pytest.raises(MemoryBudgetError, match="influence each other"):
                    make(model, loss, (x, y))

    @pytest.mark.parametrize("loss", ["sum", "weights and ignored targets"])
    @pytest.mark.parametrize("last", [9, 11])
    def test_ignored_samples_alone_are_no_reason(self, loss: str, last: int, slices_of_three: None) -> None:
        model, (x, y) = problem()
        y[:last] = 1
        found = hesse.ggn(model, LOSSES[loss], (x, y))
        assert isinstance(found, SplitBatch)
        v = torch.ones(found.shape[1], dtype=torch.float64)
        if last < 11:
            expected = references.ggn(model, LOSSES[loss], x, y) @ v
            assert oracle.difference(found.flat @ v, expected) < 1e-10
        elif loss == "sum":
            assert not (found.flat @ v).any()
        else:
            with pytest.raises(DataError, match="a total mass of 0"):
                _ = found.flat @ v

    def test_derivatives_by_16_bit_vectors_are_added_up_in_32_bits(self, slices_of_three: None) -> None:
        x = torch.rand(600, 3, generator=torch.Generator().manual_seed(0)).add_(1).bfloat16()
        found = hesse.ggn(nn.Linear(3, 1, bias=False).bfloat16(), nn.MSELoss(reduction="sum"), (x, x[:, :1]))
        assert isinstance(found, SplitBatch)
        v = {"weight": torch.ones(1, 3, dtype=torch.bfloat16, requires_grad=True)}
        (found @ v)["weight"].float().sum().backward()
        expected = 2 * (x.double().T @ x.double()).sum(0)
        assert float(((v["weight"].grad.double() - expected) / expected).abs().max()) < 0.03

    def test_samples_that_are_all_alike_may_be_sliced(self, slices_of_three: None) -> None:
        model, (x, y) = problem()
        x = x[:1].repeat(11, 1)
        found = hesse.dense(hesse.ggn(model, LOSSES["sum"], (x, y)))
        assert oracle.difference(found, references.ggn(model, LOSSES["sum"], x, y)) < 1e-10

    @pytest.mark.parametrize("budget", [40_000, None])
    def test_a_loss_for_the_whole_batch_alone(self, budget: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        if budget is None:
            monkeypatch.setattr(Slicing, "at_once", lambda self, batch: 3)
        model, x = nn.Linear(6, 3), torch.randn(500, 6)
        loss = nn.BCEWithLogitsLoss(weight=torch.rand(500, 1) + 0.5)
        y = torch.randint(2, (500, 3)).float()
        with pytest.raises(MemoryBudgetError, match="does not add up") as caught:
            hesse.ggn(model, loss, (x, y), memory=budget)
        monkeypatch.undo()
        assert isinstance(hesse.ggn(model, loss, (x, y), memory=caught.value.least), GaussNewton)
        with pytest.raises(DataError, match=r"a weight of shape \(500, 1\), one for each of 500 samples, with .* \(\d+, 3\)"):
            hesse.ggn(model, loss, (x[:490], y[:490]), memory=budget or 40_000)

    def test_a_loss_that_does_not_add_up(self, slices_of_three: None) -> None:
        model, batch = problem()
        with pytest.raises(MemoryBudgetError, match="does not add up"):
            hesse.loss_hessian(model, lambda out, target: out.mean(0).square().sum(), batch)


class TestFailures:
    def failing(self, monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
        """Products of more samples than `most` find no memory."""
        sizes: list[int] = []
        plain = GaussNewton.mv

        def mv(self: GaussNewton, v: Any) -> Any:
            sizes.append(self.run.forward.count)  # pyright: ignore[reportOptionalMemberAccess]
            if sizes[-1] > most:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")
            return plain(self, v)

        monkeypatch.setattr(GaussNewton, "mv", mv)
        return sizes

    def test_slices_are_halved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Slicing, "at_once", lambda self, batch: 11)
        model, batch = problem()
        A = hesse.ggn(model, LOSSES["smoothing"], batch)
        sizes = self.failing(monkeypatch, 3)
        v = torch.randn(A.shape[1], dtype=torch.float64)
        expected = references.ggn(model, LOSSES["smoothing"], *batch) @ v
        assert oracle.difference(A.flat @ v, expected) < 1e-10
        assert sizes[:2] == [11, 5]
        assert all(size <= 3 for size in sizes[3:])

    def test_one_sample_that_fails_is_refused(self, monkeypatch: pytest.MonkeyPatch, slices_of_three: None) -> None:
        model, batch = problem()
        A = hesse.ggn(model, LOSSES["smoothing"], batch)
        self.failing(monkeypatch, 0)
        with pytest.raises(MemoryBudgetError):
            _ = A @ A.in_space.zeros()

    def test_other_errors_pass(self, monkeypatch: pytest.MonkeyPatch, slices_of_three: None) -> None:
        model, batch = problem()
        A = hesse.ggn(model, LOSSES["smoothing"], batch)

        def broken(self: GaussNewton, v: Any) -> Any:
            raise RuntimeError("sizes do not match")

        monkeypatch.setattr(GaussNewton, "mv", broken)
        with pytest.raises(RuntimeError, match="sizes do not match"):
            _ = A @ A.in_space.zeros()

    @pytest.mark.parametrize("data", ["batch", "list", "iterable"])
    @pytest.mark.parametrize("make", [hesse.kfac, hesse.ekfac])
    def test_kronecker_passes_begin_anew(
        self, make: Callable[..., Any], data: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, (x, y) = problem()
        loss, half = LOSSES["smoothing"], [(x[:8], y[:8]), (x[8:], y[8:])]
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
        given: Any = {"batch": (x, y), "list": half, "iterable": loader}[data]
        expected = make(model, loss, given, kind="ggn")
        sizes: list[int] = []
        plain = How.rows

        def rows(self: How, model: Any, loss: Any, piece: Any, **options: Any) -> Any:
            found = plain(self, model, loss, piece, **options)
            sizes.append(len(piece[0]))
            if sizes[-1] > 4 or len(sizes) == 9:  # the ninth: in the middle of a pass
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes")
            return found

        monkeypatch.setattr(How, "rows", rows)
        found = make(model, loss, given, kind="ggn")
        assert sizes[0] == (11 if data == "batch" else 8)
        assert oracle.difference(hesse.dense(found), hesse.dense(expected)) < 1e-10
        monkeypatch.setattr(How, "rows", lambda *given, **options: torch.empty(2**60))
        with pytest.raises(MemoryBudgetError):
            make(model, loss, given, kind="ggn")

    def test_a_matrix_that_cannot_be_made_whole_is_made_of_slices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = sys.modules["hesse.curvature.ggn"]

        plain, model, batch = module.of_batch, *problem()
        sizes: list[int] = []

        def of_batch(model: Any, loss: Any, batch: Any, *rest: Any) -> GaussNewton:
            sizes.append(len(batch[0]))
            if sizes[-1] > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return plain(model, loss, batch, *rest)

        monkeypatch.setattr(module, "of_batch", of_batch)
        found = hesse.ggn(model, LOSSES["smoothing"], batch)
        assert sizes[0] == 11
        assert oracle.difference(hesse.dense(found), references.ggn(model, LOSSES["smoothing"], *batch)) < 1e-10


def test_without_a_budget_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slicing, "_measured", None)
    monkeypatch.delenv("HESSE_MEMORY", raising=False)
    model, batch = problem()
    assert isinstance(hesse.ggn(model, LOSSES["sum"], batch), GaussNewton)
    assert isinstance(hesse.ggn(model, LOSSES["sum"], batch, memory="8GiB"), GaussNewton)


SCRIPT = """
import json, sys, torch
from contextlib import suppress
torch.set_num_threads(1)
from torch import nn
import hesse
from hesse.core.errors import DataError, MemoryBudgetError
from hesse.core.growth import Growth, settle

def problem(n):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3, padding=1), nn.Softplus(), nn.Conv2d(12, 12, 3, padding=1), nn.Softplus(), nn.AvgPool2d(4)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 4))
    return model, nn.CrossEntropyLoss(), (torch.randn(n, 3, 32, 32), torch.randint(4, (n,)))

makes = {"hessian": hesse.loss_hessian, "ggn": hesse.ggn, "kfac": lambda *given: hesse.kfac(*given, kind="ggn"),
    "ekfac": lambda *given: hesse.ekfac(*given, kind="ggn")}
found = {}
for name, make in makes.items():
    def product(n):
        model, loss, batch = problem(n)
        A = make(model, loss, batch)
        torch.manual_seed(1)
        return A.out_space.ravel(A @ {k: torch.randn_like(p) for k, p in model.named_parameters()})
    product(8)
    with hesse.memory("20MiB"), suppress(MemoryBudgetError):
        product(8)
    settle()
    with Growth(torch.device("cpu")) as free:
        whole = product(COUNT)
    grown = []
    while not grown or (min(grown) > 1.1 * BUDGET and len(grown) < 4):  # what else the process does only adds to it
        settle()
        with hesse.memory(BUDGET), Growth(torch.device("cpu")) as held:
            parts = product(COUNT)
        grown.append(held.bytes)
    try:
        with hesse.memory(300_000):
            product(32)
        least = 0
    except MemoryBudgetError as error:
        least = error.least
        assert str(error).startswith({"hessian": "loss_hessian"}.get(name, name) + "("), str(error)
    with hesse.memory(least):
        product(32)
    found[name] = [free.bytes, min(grown), float((whole - parts).norm() / whole.norm()), least]
print(json.dumps(found))
"""


def test_growth_stays_within_the_budget() -> None:
    budget = 48 * MIB  # of which the fixed noise of libraries is a small part
    script = SCRIPT.replace("BUDGET", str(budget)).replace("COUNT", "288")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert not done.returncode, done.stderr
    for name, (free, held, difference, least) in json.loads(done.stdout.splitlines()[-1]).items():
        assert free > 2.5 * budget, (name, free, "the problem is too small to show anything")
        assert held < 1.2 * budget, (name, held / budget)
        assert difference < 1e-4, (name, difference)
        assert 300_000 < least < budget, (name, least)
