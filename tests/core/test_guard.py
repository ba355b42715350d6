"""Tensors that must not change in place: what is noticed, and what a copy of a guard watches."""

from __future__ import annotations

import copy

import pytest
import torch

from hesse.core.errors import DataError
from hesse.core.guard import Guard


@pytest.mark.parametrize("names", [None, ["a", "b"]])
def test_a_copy_watches_the_same_tensors_and_their_copies(names: list[str] | None) -> None:
    first, second = torch.zeros(3, 2), torch.zeros(4)
    first.add_(1)  # a version that its copy does not have
    for write in range(4):
        tensors, guard, tail = copy.deepcopy(([first, second], Guard([first, second], names), second))
        assert guard.changed() == [] and tail is tensors[1]
        guard.check("asked", "remedy")
        changed = [first, second, *tensors][write]
        changed.add_(1)
        assert [found is changed for found in guard.changed()] == [True]
        with pytest.raises(DataError, match="1 of" if names is None else f"1 of 2 .*'{'ab'[write % 2]}'"):
            guard.check("asked", "remedy")


def test_what_has_changed_is_not_copied() -> None:
    tensor = torch.zeros(3, 2)
    guard = Guard([tensor])
    tensor.add_(1)
    with pytest.raises(DataError, match=r"\[3, 2\]"):
        copy.deepcopy(guard)
