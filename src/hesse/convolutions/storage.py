"""Convolutions in files: what `hesse.save` keeps of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hesse.convolutions.operator import Convolution, TransposedConvolution
from hesse.operators import storable


@storable.register(Convolution)
def _convolution(A: Convolution) -> dict[str, Any]:
    return {"weight": A.weight, "geometry": asdict(A.geometry)}


@storable.register(TransposedConvolution)
def _transposed(A: TransposedConvolution) -> dict[str, Any]:
    return {"convolution": A.convolution}
