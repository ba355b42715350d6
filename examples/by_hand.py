"""Back-propagation through time written by hand, beside `hesse.grad`: a plain recurrent network and an LSTM.

Run it with::

    python examples/by_hand.py [FIGURE] [--epochs N] [--compile off|replay|native]

The recurrent network is that of Karpathy's *min-char-rnn* (2015), whose names are kept: dWhy, dby, dh, dhraw, dWxh, dWhh, dbh,
dhnext. The LSTM has the gates i, f, o and the candidate g of Hochreiter and Schmidhuber (1997) with the forget gate of Gers,
Schmidhuber and Cummins (2000). Both read a text character by character, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import hesse
from cells import Params, Weights, lstm_by_hand, lstm_loss, lstm_params, rnn_by_hand, rnn_loss, rnn_params
from drawing import BLUE, GRAY, ORANGE, panels, save, style
from text import characters, encoded_text
from training import Options, read_options

STEPS, HIDDEN, RATE, WINDOWS, REACH = 25, 48, 0.1, 20, 60


def by_name(grads: Params) -> Weights:
    """What `hesse.grad` gives for the nested parameters, by the names of the derivatives written by hand."""
    names = {f"d{name}": value for name, value in grads["weights"].items()}
    steps = {("dhraw" if name == "raw" else f"d{name}"): value for name, value in grads["shifts"].items()}
    return names | steps | {f"d{name}next": value for name, value in grads["state"].items()}


@dataclass
class Cell:
    """A recurrent cell: its loss, its derivatives by hand, its first parameters; and what came out of training it."""

    name: str
    color: str
    loss: Callable[..., tuple[Tensor, Weights]]
    by_hand: Callable[..., tuple[Weights, Tensor, Weights]]
    params: Callable[[int, int, int], Params]
    trained: Params = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)
    flow: Tensor = field(default_factory=lambda: torch.zeros(0))


def cells() -> list[Cell]:
    """The two cells of the example."""
    return [
        Cell("plain RNN", ORANGE, rnn_loss, rnn_by_hand, rnn_params),
        Cell("LSTM", BLUE, lstm_loss, lstm_by_hand, lstm_params),
    ]


def differences(by_hand: Weights, by_hesse: Weights) -> dict[str, float]:
    """The largest difference of each derivative, relative to its largest entry."""
    if by_hand.keys() != by_hesse.keys():
        raise KeyError(f"one has {sorted(by_hand)}, the other {sorted(by_hesse)}")
    return {name: ((by_hesse[name] - value).abs().max() / value.abs().max()).item() for name, value in by_hand.items()}


def train(cell: Cell, text: Tensor, steps: int, compile: str) -> None:
    """Adagrad (Duchi et al. 2011) on windows of the text one after the other, the state handed on; every derivative twice."""
    params, df = cell.params(len(characters()), STEPS, HIDDEN), hesse.grad(cell.loss, compile=compile)
    sums = {name: torch.zeros_like(value) for name, value in params["weights"].items()}
    for step in range(steps):
        window = text[step * STEPS : (step + 1) * STEPS + 1]
        data = (window[:-1], window[1:])
        d, loss, state = cell.by_hand(params, data)
        grads, _, _ = df(params, data)
        apart = differences(d, by_name(grads))
        for name, value in params["weights"].items():
            g = d[f"d{name}"].clamp(-5, 5)
            sums[name] += g**2
            value -= RATE * g / (sums[name] + 1e-8).sqrt()
        params["state"] = state
        cell.losses.append(loss.item() / STEPS)
        cell.apart.append(max(apart.values()))
        cell.differences = {name: max(value, cell.differences.get(name, 0.0)) for name, value in apart.items()}
    cell.trained = params


def gradient_flow(cell: Cell, text: Tensor) -> Tensor:
    """Norm of the derivative of the last character's loss with respect to the state, by steps back: ``[REACH]``, a median."""
    params, flows = cell.params(len(characters()), REACH, HIDDEN), []
    params["weights"] = cell.trained["weights"]
    for window in text[: WINDOWS * (REACH + 1)].reshape(WINDOWS, REACH + 1):
        d, _, _ = cell.by_hand(params, (window[:-1], window[1:]), first=REACH - 1)
        flows.append((d["dh"] if "dc" not in d else torch.cat([d["dh"], d["dc"]], 1)).norm(dim=1).flip(0))
    return torch.stack(flows).median(0).values  # training is chaotic: one window of twenty may end where nothing vanishes


def draw(all_cells: list[Cell], options: Options) -> None:
    """The learning curves, how far the derivatives are apart, and how far back gradients reach."""
    figure, (curves, apart, flow) = panels((1.0, 1.0, 1.0), height=3.3)
    for cell in all_cells:
        width = max(1, len(cell.losses) // 25)
        means = torch.tensor(cell.losses)[: len(cell.losses) // width * width].reshape(-1, width).mean(1)
        curves.plot([width * (index + 0.5) for index in range(len(means))], means, color=cell.color, label=cell.name)
        apart.plot(cell.apart, ".", markersize=2, color=cell.color)
        flow.plot(range(len(cell.flow)), cell.flow, color=cell.color)
    apart.axhline(torch.finfo(torch.float64).eps, color=GRAY, linewidth=1, linestyle="--", label="float64 resolution")
    style(curves, "learning curve", f"windows of {STEPS} characters", "nats per character")
    style(apart, "by hand and by hesse.grad", f"windows of {STEPS} characters", "largest relative difference")
    style(flow, "back through time", "steps back from the last loss", "norm of the gradient")
    apart.set_yscale("log")
    apart.set_ylim(1e-17, 1e-12)
    flow.set_yscale("log")
    for axes in (curves, apart):
        axes.legend(frameon=False, labelcolor=GRAY, loc="upper right")
    save(figure, options.path)


def main(options: Options) -> list[Cell]:
    """Train both cells, compare every derivative on the way, draw."""
    text, all_cells = encoded_text(), cells()
    for cell in all_cells:
        train(cell, text, 100 * options.epochs, options.compile)
        cell.flow = gradient_flow(cell, text)
        end = sum(cell.losses[-50:]) / 50
        print(f"{cell.name}: {len(cell.losses)} windows of {STEPS} characters, {end:.3f} nats per character at the end")
        print("    largest difference, by hand and by hesse.grad, relative to the largest entry")
        for name, difference in cell.differences.items():
            print(f"    {name:8}{difference:10.1e}")
    draw(all_cells, options)
    return all_cells


if __name__ == "__main__":
    main(read_options("by_hand.png", epochs=8))
