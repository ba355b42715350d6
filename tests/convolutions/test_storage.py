"""Convolutions in files, by themselves and within other operators."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import hesse
from hesse.convolutions import convolution
from hesse.core.errors import StructureError
from hesse.operators import Identity

from .torch_oracle import named, randn


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
def test_there_and_back(dtype: torch.dtype, tmp_path: Path) -> None:
    for name, drawn in named(dtype):
        A = convolution(drawn.weight, drawn.shape, **drawn.options)
        for B in (A, A.T, A.H, A.T @ A + 2 * Identity(A.in_space)):
            hesse.save(B, tmp_path / "a.safetensors")
            for C in (hesse.load(tmp_path / "a.safetensors"), hesse.load(tmp_path / "a.safetensors", like=B)):
                assert (repr(C), type(C)) == (repr(B), type(B)), name
                x = randn(*B.in_space.shapes[0], dtype=dtype)
                assert torch.equal(C @ x, B @ x), name
        loaded = hesse.load(tmp_path / "a.safetensors")
        assert (loaded.in_space, loaded.in_space.dtypes) == (A.in_space, A.in_space.dtypes)


def test_a_layer_that_trains(tmp_path: Path) -> None:
    layer = nn.Conv2d(2, 3, (3, 2), padding=1, bias=False)
    A = convolution.from_module(layer, (2, 5, 4))
    hesse.save(A, tmp_path / "a.safetensors")
    B = hesse.load(tmp_path / "a.safetensors")
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(B @ x, layer(x))
    assert not (B @ x).requires_grad
    with pytest.raises(StructureError, match="does not fit"):
        hesse.load(tmp_path / "a.safetensors", like=torch.zeros(2, 5, 5))
