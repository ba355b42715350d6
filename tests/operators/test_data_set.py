"""Passes over data: changed content is noticed, the operators of the first pass are kept while memory allows."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hesse.core.errors import DataError, StructureError
from hesse.core.memory import memory
from hesse.core.progress import progress
from hesse.operators import Average, Dense, LinearOperator, average

from .zoo import drawing

Batch = tuple[Tensor, Tensor]
T = drawing(torch.float64)
X, Y = T(12, 4), T(12, 3)


def matrix(X: Tensor, Y: Tensor) -> Tensor:
    """The mean of ``y x^T`` over the samples, ``[3, 4]``, sample by sample."""
    return torch.stack([torch.outer(y, x) for x, y in zip(X, Y, strict=True)]).sum(0) / len(X)


class Maker:
    """Makes operators ``mean(y x^T)`` of mass n that hold so many bytes, and counts them."""

    def __init__(self, held: int | None = None, reads: tuple[Tensor, ...] = ()) -> None:
        self.held, self.reads, self.made = held, reads, 0

    def __call__(self, batch: Batch) -> LinearOperator:
        self.made += 1
        A: Any = Dense(matrix(*batch))
        A.mass, A.reads = float(len(batch[0])), self.reads
        if self.held is not None:
            A.held_bytes = self.held
        return A


class Passes:
    """A data set whose nth reading gives what the nth function makes of the samples, in batches of five."""

    def __init__(self, *changes: Callable[[Tensor, Tensor], Batch]) -> None:
        self.changes, self.passes = list(changes), 0

    def __iter__(self) -> Iterator[Batch]:
        x, y = self.changes[min(self.passes, len(self.changes) - 1)](X.clone(), Y.clone())
        self.passes += 1
        return zip(x.split(5), y.split(5), strict=True)


def same(x: Tensor, y: Tensor) -> Batch:
    return x, y


def reverse(x: Tensor, y: Tensor) -> Batch:
    return x.flip(0), y.flip(0)


def swapped_labels(x: Tensor, y: Tensor) -> Batch:
    return x, torch.cat([y[[1, 0]], y[2:]])


def one_pixel(x: Tensor, y: Tensor) -> Batch:
    x[11, 3] = torch.nextafter(x[11, 3], torch.tensor(9.0, dtype=x.dtype))
    return x, y


def one_dropped(x: Tensor, y: Tensor) -> Batch:
    return x[1:], y[1:]


def one_doubled(x: Tensor, y: Tensor) -> Batch:
    return torch.cat([x, x[:1]]), torch.cat([y, y[:1]])


def one_replaced_by_another(x: Tensor, y: Tensor) -> Batch:
    return torch.cat([x[1:], x[1:2]]), torch.cat([y[1:], y[1:2]])


@pytest.mark.parametrize(
    "change", [swapped_labels, one_pixel, one_dropped, one_doubled, one_replaced_by_another], ids=lambda f: f.__name__
)
def test_changed_content_is_refused_before_anything_is_returned(change: Callable[[Tensor, Tensor], Batch]) -> None:
    A = average(Maker(), Passes(same, same, reverse, change))
    assert_is(A)  # the first reading told the spaces, the second was for A, the third for its transpose
    with pytest.raises(DataError, match="data_check=False"):
        A @ T(4)
    unchecked = average(Maker(), Passes(same, same, change), data_check=False)
    assert unchecked.mass == 12
    torch.testing.assert_close(unchecked @ torch.eye(4, dtype=torch.float64), matrix(*change(X.clone(), Y.clone())).mT)


def assert_is(A: Average, M: Tensor | None = None) -> None:
    v, u, M = T(4), T(3), matrix(X, Y) if M is None else M
    torch.testing.assert_close(A @ v, M @ v, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(A.T @ u, M.mT @ u, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("held", [None, 10])
def test_a_key_that_is_renamed_is_another_batch(held: int | None, static: bool) -> None:
    maker = Maker(held)
    halves = [(X[:5], Y[:5]), (X[5:], Y[5:])]
    batches: list[Any] = [{"x": x, "y": y, "first": 3 if static else x} for x, y in halves]
    A = average(lambda batch: maker((batch["x"], batch["y"])), batches)
    assert_is(A)
    batches[0]["second"] = batches[0].pop("first")
    with pytest.raises(DataError, match="some with other content"):
        A @ T(4)


@pytest.mark.parametrize("held", [None, 10])
def test_order_and_batches_may_change(held: int | None) -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(1))
    A = average(Maker(held), loader)
    for _ in range(3):
        assert_is(A)
    recut = Passes(same)
    B = average(Maker(), recut)
    assert_is(B)
    recut.changes = [lambda x, y: (x.roll(3, 0), y.roll(3, 0))]
    assert_is(B)


def test_the_message_counts_samples() -> None:
    A = average(Maker(), Passes(same, same, one_dropped))
    A @ T(4)
    with pytest.raises(DataError, match="11 samples where the first pass had 12"):
        A @ T(4)


def test_an_abandoned_pass_sets_nothing() -> None:
    data = Passes(same, one_pixel, same)
    A = average(Maker(), data)  # reading 0, abandoned after a batch
    for _ in A.operators():  # reading 1, abandoned
        break
    next(A.weighted())  # reading 2
    assert repr(A) == "Average(3 x 4 over batches)"
    failing = average(Maker(8), [(X, Y)])
    with pytest.raises(ZeroDivisionError):
        failing.combine(lambda _: 1 / 0)
    assert repr(failing) == "Average(3 x 4 over batches)"
    data.changes = [one_dropped]
    M = matrix(X[1:], Y[1:])
    torch.testing.assert_close(A @ torch.eye(4, dtype=torch.float64), M.mT)


OWN = 672  # bytes of the tensors of all three batches
LIST = list(zip(X.split(5), Y.split(5), strict=True))  # three batches


@pytest.mark.parametrize("batches", [LIST, tuple(LIST), DataLoader(TensorDataset(X, Y), batch_size=5)], ids=type)
def test_kept_operators_are_used_again_bit_for_bit(batches: Any) -> None:
    kept, recomputed = Maker(100), Maker()
    A, B = average(kept, batches), average(recomputed, batches)
    v, u, V = T(4), T(3), T(2, 4)
    for _ in range(2):
        assert torch.equal(A @ v, B @ v)
        assert torch.equal(A @ V, B @ V)
        assert torch.equal(A.T @ u, B.T @ u)
    assert kept.made == 3  # the one that told the spaces among them
    assert recomputed.made in (19, 16)  # 6 passes of 3, and one for the spaces unless that served the first pass
    held = 300 if isinstance(batches, (list, tuple)) else 300 + OWN  # what a loader makes is held by the operators alone
    assert repr(A) == f"Average(3 x 4 over batches; 3 of 3 batches kept ({held} B))"
    assert repr(A.T).endswith(f"3 of 3 batches kept ({held} B))")
    assert repr(B) == "Average(3 x 4 over batches; recomputed)"


def test_kept_operators_do_not_read_the_data() -> None:
    data = Passes(same, same, one_pixel)
    A = average(Maker(100), data)
    for _ in range(3):
        assert_is(A)
    assert data.passes == 2


@pytest.mark.parametrize(
    ("budget", "of_list", "of_loader"),
    [(600 + 2 * OWN, 3, 3), (599 + 2 * OWN, 3, 0), (600, 3, 0), (599, 2, 0), (400, 2, 0), (200, 1, 0), (199, 0, 0)],
)
def test_as_many_as_fit_into_half_of_the_budget(budget: int, of_list: int, of_loader: int) -> None:
    for batches, expected in ((LIST, of_list), (Passes(same), of_loader)):
        maker = Maker(100)
        A = average(maker, batches, memory=budget)
        assert_is(A)
        before = maker.made
        assert_is(A)
        assert maker.made == before + 2 * (3 - expected)
        held = expected * 100 + (OWN if batches is not LIST else 0)
        shown = f"{expected} of 3 batches kept ({held} B)" if expected else "recomputed"
        assert repr(A) == f"Average(3 x 4 over batches; {shown})"


def test_the_first_that_does_not_fit_ends_the_keeping() -> None:
    sizes = iter([10, 1000, 10])
    maker = Maker()

    def make(batch: Batch) -> LinearOperator:
        maker.held = next(sizes, 10)
        return maker(batch)

    A = average(make, LIST, memory=200)
    assert_is(A)
    assert "1 of 3 batches kept (10 B)" in repr(A)


def test_the_budget_in_force_counts() -> None:
    A = average(Maker(100), LIST)
    with memory(400):
        assert_is(A)
    assert "2 of 3 batches kept" in repr(A)


@pytest.mark.parametrize("options", [{"keep": False}, {"data_check": False}])
def test_nothing_is_kept_on_request_or_unchecked(options: dict[str, bool]) -> None:
    maker = Maker(1)
    A = average(maker, LIST, **options)
    assert_is(A)
    assert maker.made in (6, 7)
    assert "recomputed" in repr(A)


def test_a_bad_budget_is_refused_at_once() -> None:
    with pytest.raises(StructureError, match="memory budget"):
        average(Maker(), LIST, memory="plenty")


def own_list() -> list[Batch]:
    return [(x.clone(), y.clone()) for x, y in LIST]


@pytest.mark.parametrize("room", [10_000, 400], ids=["all kept", "two kept"])
@pytest.mark.parametrize("place", [0, 2])
def test_changes_in_a_kept_list_are_noticed(room: int, place: int) -> None:
    def element(batches: list[Batch]) -> None:
        batches[place][0][0, 0] += 1

    def batch(batches: list[Batch]) -> None:
        batches[place] = (batches[place][0] + 1, batches[place][1])

    def shorter(batches: list[Batch]) -> None:
        del batches[place]

    def longer(batches: list[Batch]) -> None:
        batches.insert(place, batches[0])

    for change in (element, batch, shorter, longer):
        batches = own_list()
        A = average(Maker(100), batches, memory=room)
        assert_is(A)
        change(batches)
        with pytest.raises(DataError, match=r"other content|samples where"):
            A @ T(4)


class Bag(UserDict[str, Any]):
    """A mapping that trees do not open."""


@pytest.mark.parametrize("held", [100, 300], ids=["all kept", "two kept"])
@pytest.mark.parametrize("case", ["float", "int", "text", "sign", "array", "in a mapping", "inference"])
def test_what_counts_no_versions_is_looked_at_in_a_kept_list(case: str, held: int) -> None:
    def made(batch: dict[str, Any]) -> LinearOperator:
        return maker((batch["x"], batch["y"]))

    kinds: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "float": (lambda: 1.0, lambda _: 3.0),
        "int": (lambda: 1, lambda _: 3),
        "text": (lambda: "mean", lambda _: "sum"),
        "sign": (lambda: 0.0, lambda _: -0.0),
        "array": (lambda: np.ones(3), lambda array: np.add(array, 1, out=array)),
        "in a mapping": (lambda: Bag(scale=torch.ones(2)), lambda bag: Bag(scale=bag["scale"].add_(1))),
        "inference": (inferred, in_inference),
    }
    new, change = kinds[case]
    batches = [{"x": x.clone(), "y": y.clone(), "scale": new(), "nan": float("nan")} for x, y in LIST]
    maker = Maker(held)
    A = average(made, batches, memory=1200)
    assert_is(A)
    assert f"{'3' if held == 100 else '2'} of 3 batches kept" in repr(A)
    before = maker.made
    assert_is(A)
    assert maker.made - before == (0 if held == 100 else 1) * 2  # nothing kept is made again
    batches[0]["scale"] = change(batches[0]["scale"])
    with pytest.raises(DataError, match="other content"):
        A @ T(4)


def inferred() -> Tensor:
    with torch.inference_mode():
        return torch.ones(2)


def in_inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.add_(1)


def test_equal_copies_in_another_order_are_no_change() -> None:
    batches = own_list()
    A = average(Maker(100), batches)
    assert_is(A)
    batches[:] = own_list()[::-1]
    assert_is(A)


@pytest.mark.parametrize("held", [None, 10])
@pytest.mark.parametrize("batches", [LIST, Passes(same)], ids=["list", "iterable"])
def test_parameters_that_changed_are_refused(held: int | None, batches: Any) -> None:
    weight, bias = torch.nn.Parameter(T(2, 3)), torch.nn.Parameter(T(2))
    A = average(Maker(held, (weight.detach(), bias)), batches)
    assert_is(A)
    with torch.no_grad():
        weight.mul_(1.0)
    with pytest.raises(DataError, match=r"1 of 2 changed in place since \(of shape \[2, 3\]\)"):
        A @ T(4)
    with pytest.raises(DataError, match="make a new operator"):
        A.T.combine(lambda operator: pytest.fail("used before the parameters were looked at"))
    assert_is(average(Maker(held, (weight, bias)), batches))


def test_parameters_that_change_during_a_pass_are_refused() -> None:
    weight = torch.zeros(2)
    A = average(Maker(None, (weight,)), LIST)
    with pytest.raises(DataError, match="1 of 1 changed"):
        A.combine(lambda operator: weight.add_(1) + operator.shape[0])


def test_weighted_gives_operators_and_weights_in_one_pass() -> None:
    nothing = (X[:0], Y[:0])
    maker = Maker()

    def make(batch: Batch) -> LinearOperator:
        return maker(batch) if len(batch[0]) else _massless()

    def _massless() -> LinearOperator:
        A = Dense(torch.full((3, 4), torch.nan, dtype=torch.float64))
        A.mass = 0.0
        return A

    A = average(make, [nothing, *LIST])
    parts = [(operator.flat @ torch.eye(4, dtype=torch.float64), weight) for operator, weight in A.weighted()]
    assert [weight for _, weight in parts] == [5.0, 5.0, 2.0]
    torch.testing.assert_close(sum(w * part for part, w in parts) / 12, matrix(X, Y))
    assert A.mass == 12
    assert [operator.shape for operator, _ in A.T.weighted()] == [(4, 3)] * 3
    with pytest.raises(DataError, match="total mass of 0"):
        list(average(make, [nothing]).weighted())
    assert [w for _, w in average(Maker(), LIST, additive=True).weighted()] == [1.0, 1.0, 1.0]


def test_the_random_state_and_the_data_are_left_alone(untouched: None) -> None:
    x, y = X.clone(), Y.clone()
    with progress():
        assert_is(average(Maker(3), LIST))
    assert torch.equal(X, x) and torch.equal(Y, y)
