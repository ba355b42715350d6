"""The generated sweep: modules and losses with options drawn from their signatures against per-sample loops in float64."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from tests.parameters import oracle
from tests.parameters.layers import FAMILIES, Drawn
from tests.parameters.losses import DrawnLoss, draw_loss

CASES = 600
TOLERANCE = 1e-9


class Network(nn.Module):
    """A drawn layer with layers before and after it."""

    def __init__(self, drawn: Drawn, rng: random.Random, final: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call, self.final = drawn.layer, drawn.call, final
        widths = [shape[-1] for shape in drawn.shapes if not drawn.tokens and rng.random() < 0.6]
        self.before = nn.ModuleList(nn.Linear(width, width) for width in widths if len(widths) == len(drawn.shapes))
        self.positions = rng.random() < 0.3
        self.after: nn.Module = nn.LazyLinear(3)

    def forward(self, *inputs: Tensor) -> Tensor:
        if len(self.before):
            inputs = tuple(torch.tanh(layer(x)) for layer, x in zip(self.before, inputs, strict=True))
        hidden = torch.tanh(self.call(self.layer, *inputs))
        if self.positions and hidden.ndim > 2:
            return self.final(self.after(hidden.flatten(1, -2)).transpose(1, 2))  # [N, C, T]: a sequence of outputs
        return self.final(self.after(hidden.flatten(1)))


def _case(seed: int) -> tuple[Network, Drawn, DrawnLoss, tuple[Tensor, ...], Tensor]:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    drawn = FAMILIES[seed % len(FAMILIES)](rng)
    loss = draw_loss(rng, generator)
    network = Network(drawn, rng, loss.final).double().eval()
    count = rng.choice([1, 2, 3, 4, 5])
    inputs = tuple(
        torch.randint(0, drawn.tokens, (count, *shape), generator=generator)
        if drawn.tokens
        else torch.randn(count, *shape, generator=generator, dtype=torch.float64)
        for shape in drawn.shapes
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = network(*inputs)
        oracle.randomize(network)
    return network, drawn, loss, inputs, loss.targets(output.shape)


def _compare(J: hesse.ParameterJacobian, rows: Tensor) -> dict[str, float]:
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(rows.shape[1], generator=generator, dtype=rows.dtype)
    u = torch.randn(rows.shape[0], generator=generator, dtype=rows.dtype)
    squares = J.in_space.ravel(J.sum_of_squares())
    return {
        "dense": oracle.difference(J.dense(), rows),
        "norms": oracle.difference(J.norms(), rows.norm(dim=1)),
        "gram": oracle.difference(J.gram(), rows @ rows.mT),
        "sum_of_squares": oracle.difference(squares, rows.square().sum(0)),
        "J @ v": oracle.difference(J.flat @ v, rows @ v),
        "J.T @ u": oracle.difference(J.T.flat @ u, rows.mT @ u),
    }


def _check(seed: int) -> str:
    """What is wrong with a case; empty if it is right."""
    network, drawn, loss, inputs, targets = _case(seed)
    what = f"seed {seed}, N={len(targets)}: {drawn.label}, before={len(network.before)}, loss {loss.label}"
    try:
        J = hesse.parameter_jacobian(network, loss.loss, (inputs if len(inputs) > 1 else inputs[0], targets))
    except hesse.HesseError as error:
        return "" if drawn.refused and drawn.refused in str(error) else f"{what}: refused: {error}"
    except Exception as error:
        return f"{what}: {type(error).__name__}: {error}"
    if drawn.refused:
        return f"{what}: not refused"
    rows = oracle.loss_rows(network, loss.by_sample, inputs, targets)
    wrong = {name: off for name, off in _compare(J, rows).items() if not off < TOLERANCE}
    with torch.no_grad():
        mass = loss.mass(network(*inputs), targets)
    if not (mass == pytest.approx(J.mass, rel=1e-9) or (mass != mass and J.mass == 0)):  # all ignored: 0 / (0 / 0)
        wrong["mass"] = abs(mass - J.mass)
    return f"{what}: {wrong}, paths {J.paths}" if wrong else ""


@pytest.mark.filterwarnings("ignore")
def test_rows_of_drawn_modules_equal_per_sample_loops(sweep: Callable[[Any, int], list[int]]) -> None:
    wrong = [message for seed in sweep(range(CASES), 90) if (message := _check(seed))]
    assert not wrong, "\n".join([f"{len(wrong)} wrong cases", *wrong])
