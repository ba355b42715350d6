"""A guard sees that values have changed, whatever the layout and dtype, and nothing else."""

from __future__ import annotations

import pytest
import torch

from hesse.sparse.guards import Guard

MATRIX = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.bool])
def test_dtypes(dtype: torch.dtype) -> None:
    t = MATRIX.to(dtype)
    guard = Guard([t, torch.tensor(1.0), torch.zeros(0, 2)])
    assert len(guard) == 3
    assert guard.changed() == []
    t[0, 0] = 1
    assert guard.changed() == [f"{dtype} of shape (2, 3)"]
    t[0, 0] = 0
    assert guard.changed() == []


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
def test_layouts(layout: str) -> None:
    t = getattr(MATRIX, layout)()
    guard = Guard([t])
    assert guard.changed() == []
    t.mul_(1.0)
    assert guard.changed() == []
    t.mul_(2.0)
    assert len(guard.changed()) == 1


def test_watches_memory() -> None:
    base, sparse = torch.arange(6), MATRIX.to_sparse()
    guard = Guard([base[2:], sparse])
    assert guard.watches(base.view(2, 3)) and guard.watches(sparse)
    assert not guard.watches(base.clone()) and not guard.watches(MATRIX.to_sparse())
    assert repr(guard) == "Guard(2 tensors)"


def test_values_that_come_back_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from hesse.sparse import guards

    t, hashed = torch.ones(3), []
    guard, digest = Guard([t]), guards._digest
    monkeypatch.setattr(guards, "_digest", lambda tensor: hashed.append(1) or digest(tensor))
    t.mul_(1.0)
    assert [guard.changed(), guard.changed(), len(hashed)] == [[], [], 1]
    t.mul_(2.0)
    assert [len(guard.changed()), len(guard.changed())] == [1, 1]


def test_views_and_conjugates() -> None:
    base = torch.arange(6.0, dtype=torch.float64).view(2, 3) * 1j
    guard = Guard([base.t().conj(), base[:, 1]])
    base[0, 0] = 5
    assert guard.changed() == ["torch.complex128 of shape (3, 2)"]
    base[1, 1] = 5
    assert len(guard.changed()) == 2
