"""Inverses taken apart into tensors and plain values, and put together again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.convolutions import ladder
from hesse.convolutions.inverse import Inverse
from hesse.convolutions.stored_inverse import restored, stored
from hesse.core.errors import UnsupportedError
from tests.convolutions.dense_oracle import CASES, Case

BOX = Case("box", (1, 1, 3, 3), (1, 8, 8), {"padding": 1})


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for part in parts for t in tensors(part)]


def rungs() -> list[tuple[str, Inverse]]:
    found: list[tuple[str, Inverse]] = []
    for case in (*CASES, BOX):
        weight = torch.ones(case.weight_shape, dtype=case.dtype) if case is BOX else case.weight()
        for method in ("dense", "circular", "patches", "boundary"):
            try:
                found.append((f"{case} by {method}", ladder.inverse(case.operator(weight), method=method)))
            except ValueError:  # the method does not apply
                continue
    return found


def test_every_rung() -> None:
    methods = set()
    for name, inverse in rungs():
        A = inverse.convolution
        kept = stored(inverse)
        assert tensors(kept)
        assert not any(t.data_ptr() == A.weight.data_ptr() for t in tensors(kept))
        again = restored(kept, A)
        assert type(again) is type(inverse)
        assert again.convolution is A
        assert (again.truncated, again.gap, again.norm(), again.method) == (
            inverse.truncated, inverse.gap, inverse.norm(), inverse.method), name  # fmt: skip
        y, x = (torch.randn(2, *s, dtype=A.weight.dtype) for s in (A.geometry.out_shape, A.geometry.in_shape))
        assert torch.equal(again.apply(y).value, inverse.apply(y).value), name
        assert torch.equal(again.apply(x, adjoint=True).value, inverse.apply(x, adjoint=True).value), name
        methods.add(inverse.method)
    assert methods == {"dense", "circular", "patches", "boundary"}


def test_krylov_methods_have_nothing_to_store() -> None:
    assert stored(ladder.inverse(CASES[0].operator(CASES[0].weight()), method="krylov")) is None


def test_values_of_other_kinds_are_refused() -> None:
    inverse = ladder.inverse(CASES[0].operator(CASES[0].weight()), method="dense")
    vars(inverse)["more"] = object()
    with pytest.raises(UnsupportedError, match=r"a object at DenseInverse\.more"):
        stored(inverse)
