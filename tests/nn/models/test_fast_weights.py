"""`RecurrentFWNetwork` against the paper's formulas, one sample at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.nn.models import RecurrentFWNetwork

from .common import F64, check_part, filled, gradients, normal

close = torch.testing.assert_close


def formula(decay: float, rate: float, inner_steps: int, eps: float | None):
    def run(params: dict, x: Tensor) -> Tensor:
        rows = []
        for sample in x:
            h, outputs = torch.zeros(5, dtype=F64), []
            A = torch.zeros(5, 5, dtype=F64)
            for step in sample:
                A = decay * A + rate * torch.outer(h, h)
                slow = params["weight_ih"] @ step + params["weight_hh"] @ h + params["bias"]
                s = torch.zeros(5, dtype=F64)
                for _ in range(inner_steps + 1):
                    z = slow + A @ s
                    if eps is not None:
                        centered = z - z.mean()
                        z = centered / torch.sqrt(centered.square().mean() + eps)
                        z = z * params["normalization"]["weight"] + params["normalization"]["bias"]
                    s = z.clamp(min=0)
                h = s
                outputs.append(h)
            rows.append(torch.stack(outputs))
        return torch.stack(rows)

    return run


CASES = [
    ({}, (0.9, 0.5, 1, 1e-5)),
    ({"layer_normalization": False}, (0.9, 0.5, 1, None)),  # could not be switched off in the original
    ({"eps": 0.3}, (0.9, 0.5, 1, 0.3)),
    ({"decay": 0.4, "rate": 0.2, "inner_steps": 3}, (0.4, 0.2, 3, 1e-5)),
    ({"inner_steps": 0}, (0.9, 0.5, 0, 1e-5)),
]


@pytest.mark.parametrize(("options", "numbers"), CASES)
def test_formulas(options: dict, numbers: tuple) -> None:
    f, params = RecurrentFWNetwork(3, 5, output_type="all", dtype=F64, **options)
    assert ("normalization" in params) == options.get("layer_normalization", True)
    params = filled(params)
    params["weight_hh"] = 0.3 * params["weight_hh"]  # without normalization the recurrence would explode
    x = 0.5 * normal(4, 6, 3)
    run = formula(*numbers)
    close(f(params, x)[0], run(params, x), rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients(f, params, x), gradients(run, params, x), strict=True):
        close(a, b, rtol=1e-8, atol=1e-8)
    check_part(f, params, x)


def test_the_fast_weights_are_in_the_state() -> None:
    f, params = RecurrentFWNetwork(3, 5, dtype=F64)
    params, x = filled(params), normal(4, 2, 3)
    _, first = f(params, x[:, :1])
    y, state = f(params, x)
    close(state["A"], 0.5 * torch.einsum("ni,nj->nij", first["h"], first["h"]))
    assert state["A"].shape == (4, 5, 5)
    close(y, state["h"])


def test_messages() -> None:
    with pytest.raises(StructureError, match="not negative"):
        RecurrentFWNetwork(3, 5, inner_steps=-1)
