"""The random check beside matrices that are wrong in known places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.autodiff.recording import record
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.sparse import Pattern, prepare_hessian, prepare_jacobian
from hesse.sparse.verify import Check, place
from tests.autodiff import one_way

REAL = torch.float64


def point(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dtype=REAL, generator=torch.Generator().manual_seed(seed))


def checked(f: Any, x: Any, wrong: dict[int, float]) -> tuple[Check, Any, Tensor, Tensor]:
    """The check of a bidiagonal matrix [4, 5], some of whose entries are changed."""
    recording = record(f, x, "a check")
    dense = torch.func.jacrev(f)(x)
    pattern = Pattern.of(dense != 0)
    check = Check(pattern, recording.in_space, recording.out_space)
    rows, columns = pattern.coordinates
    entries = dense[rows, columns].clone()
    for index, value in wrong.items():
        entries[index] = value
    return check, recording, check.product(recording), entries


def bidiagonal(u: Tensor) -> Tensor:
    return u[1:] ** 3 * u[:-1]


def test_right_entries_pass() -> None:
    check, _, expected, entries = checked(bidiagonal, point(5), {})
    assert check.suspects(expected, entries) == []


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("value", [0.0, 1e3, float("inf"), float("nan")])
def test_a_wrong_entry_is_found_where_it_is(index: int, value: float) -> None:
    check, recording, expected, entries = checked(bidiagonal, point(5), {index: value})
    rows, columns = check._rows, check._columns
    suspects = check.suspects(expected, entries)
    assert suspects[0] == int(columns[index])
    miss = check.miss(recording, entries, suspects)
    assert miss is not None
    assert (miss.row, miss.column) == (int(rows[index]), int(columns[index]))
    exact = float(torch.func.jacrev(bidiagonal)(point(5))[miss.row, miss.column])
    assert miss.exact == pytest.approx(exact)
    assert f"at row {miss.row}, column {miss.column}, where the pattern gives" in str(check.error(miss))


def test_a_small_difference_is_found() -> None:
    check, recording, expected, entries = checked(bidiagonal, point(5), {})
    entries[3] *= 1 + 1e-9
    miss = check.miss(recording, entries, check.suspects(expected, entries))
    assert miss is not None
    assert (miss.row, miss.column) == (int(check._rows[3]), int(check._columns[3]))


def test_cancellation_within_the_function_is_no_miss() -> None:
    def f(u: Tensor) -> Tensor:
        return (u * 1e8).cos() * 1e-4 + u[[0, 0, 0]] * 1e8 - u[[0, 0, 0]] * 1e8

    prepared = prepare_jacobian(f, point(3))
    for seed in range(5):
        prepared(point(3, seed))


def test_a_constant_but_for_little_is_no_miss() -> None:
    layer = torch.nn.BatchNorm1d(3, dtype=REAL, track_running_stats=False)
    prepared = prepare_hessian(lambda x: (layer(x) ** 2).sum(), point(12).view(4, 3))
    for seed in range(3):
        x = point(12, seed).view(4, 3).requires_grad_()
        (gradient,) = torch.autograd.grad((layer(x) ** 2).sum(), x, create_graph=True)
        exact = torch.stack([torch.autograd.grad(g, x, retain_graph=True)[0].reshape(-1) for g in gradient.reshape(-1)])
        found = prepared(x.detach(), layout="dense").hessian
        torch.testing.assert_close(found.detach(), exact, rtol=1e-6, atol=1e-9)


def test_infinite_derivatives_are_no_miss() -> None:
    x = torch.tensor([0.0, 1.0, 4.0], dtype=REAL)
    _, jacobian = prepare_jacobian(lambda u: u.sqrt() * 2, x)(x, layout="dense")
    assert jacobian.diagonal().tolist() == [float("inf"), 1.0, 0.5]


def test_entries_are_named_by_leaf_and_index() -> None:
    x = {"a": point(3), "b": point(2, 1)}

    def f(p: Any) -> Any:
        return {"sum": p["a"].sum(), "table": p["a"][:, None] * p["b"]}

    pattern = torch.ones(7, 5)
    pattern[4, 4] = 0  # table[1, 1] by b[1]
    with pytest.raises(StructureError, match=r"at row 4, column 4 \(table\[1, 1\] by b\[1\]\), where the pattern gives 0"):
        prepare_jacobian(f, x, pattern=pattern)(x)


def test_places() -> None:
    space = Space.of({"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": [torch.zeros(0), torch.zeros(4)]})
    assert [place(space, k, "x") for k in (0, 5, 6, 7, 10)] == ["a[0, 0]", "a[1, 2]", "b", "c.1[0]", "c.1[3]"]
    assert place(Space.of(torch.zeros(2, 2)), 3, "x") == "x[1, 1]"


def test_a_missing_entry_comes_before_those_that_it_spoils() -> None:
    f = lambda u: torch.stack([u[0] * u[1], 3 * u[1] + 1e-3 * u[2], u[2]])  # noqa: E731
    x = point(3)
    recording = record(f, x, "a check")
    pattern = Pattern.of(torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]]))
    check = Check(pattern, recording.in_space, recording.out_space)
    entries = torch.stack([x[1], x[0], torch.tensor(3.001, dtype=REAL), torch.tensor(1.0, dtype=REAL)])
    miss = check.miss(recording, entries, check.suspects(check.product(recording), entries))
    assert miss is not None
    assert (miss.row, miss.column, miss.is_stored, miss.given) == (1, 2, False, 0.0)
    assert miss.exact == pytest.approx(1e-3)


@pytest.mark.parametrize("name", one_way.FUNCTIONS)
def test_reverse_mode_says_what_is_right(name: str) -> None:
    """Of functions whose forward products are something else, or nothing; a clipped gradient is not linear."""
    own, x = one_way.FUNCTIONS[name], point(6)
    leaf = x.clone().requires_grad_()
    exact = torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in own(leaf)])
    recording = record(own, x, "a check")
    check = Check(Pattern.of(torch.eye(6)), recording.in_space, recording.out_space)
    entries = exact.diagonal().clone()
    expected = check.product(recording)
    assert check.miss(recording, entries, check.suspects(expected, entries)) is None
    entries[2] = 3.5
    miss = check.miss(recording, entries, check.suspects(expected, entries))
    assert miss is not None
    assert (miss.row, miss.column, miss.is_stored, miss.given) == (2, 2, True, 3.5)
    assert miss.exact == pytest.approx(float(exact[2, 2]))


def test_rounding_of_attention_is_no_miss() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, dtype=REAL)
    x = torch.rand(3, 4, 8, dtype=REAL, generator=torch.Generator().manual_seed(0))
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    prepared = prepare_hessian(lambda t: (layer(t) ** 2).sum(), x)
    for k in range(2):
        assert prepared(x + k, layout="dense").hessian.isfinite().all()


def test_the_remedy_is_the_last_line() -> None:
    check, recording, expected, entries = checked(bidiagonal, point(5), {0: 7.0})
    miss = check.miss(recording, entries, check.suspects(expected, entries))
    assert miss is not None
    assert str(check.error(miss, "prepare again")).endswith("remedy: prepare again")
