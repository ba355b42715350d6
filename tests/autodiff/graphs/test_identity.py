"""Makers of tensors: by memory and layout, through views, writes and copies that autograd keeps."""

from __future__ import annotations

import torch

from hesse.autodiff.graphs.identity import Makers


def test_views_have_makers_of_their_own_and_a_write_renews_them_all() -> None:
    makers = Makers[str]()
    base = torch.zeros(4, 3)
    makers.put(base, "base")
    row, column = base[1], base[:, 2]
    makers.put(row, "row")
    makers.put(column, "column")
    assert [makers.get(value) for value in (base, row, column)] == ["base", "row", "column"]
    makers.write(row, "write")
    assert [makers.get(value) for value in (base, row, column)] == ["write", "write", "write"]
    again = base.t()
    makers.put(again, "t")
    assert [makers.get(value) for value in (base, again)] == ["write", "t"]


def test_a_view_never_told_of_is_the_last_writers() -> None:
    makers = Makers[str]()
    base = torch.zeros(4, 3)
    makers.put(base, "base")
    assert makers.get(base.view(12)) == "base"
    makers.write(base, "write")
    assert makers.get(base[2:]) == "write"


def test_another_object_of_the_same_memory_and_layout_is_the_same_tensor() -> None:
    makers = Makers[str]()
    base = torch.zeros(4, 3)
    makers.put(base, "base")
    assert makers.get(base.detach()) == "base"
    assert makers.get(base.clone()) is None


def test_memory_that_was_freed_is_forgotten() -> None:
    makers = Makers[str]()
    for number in range(3000):
        makers.put(torch.zeros(5), f"t{number}")
    assert len(makers._memories) < 2100
    fresh = torch.zeros(5)
    assert makers.get(fresh) is None


def test_sparse_and_zero_tensors_are_told_by_object() -> None:
    makers = Makers[str]()
    sparse = torch.eye(3).to_sparse()
    other = torch.eye(3).to_sparse()
    makers.put(sparse, "sparse")
    assert (makers.get(sparse), makers.get(other)) == ("sparse", None)
    zero = torch._efficientzerotensor((2, 3))
    makers.write(zero, "zero")
    assert makers.get(zero) == "zero"
