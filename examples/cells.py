"""A plain recurrent network and an LSTM that read characters, with their derivatives written by hand.

The recurrent network is that of Karpathy's *min-char-rnn* (2015), whose names are kept: dWhy, dby, dh, dhraw, dWxh, dWhh, dbh,
dhnext. The LSTM has the gates i, f, o and the candidate g of Hochreiter and Schmidhuber (1997) with the forget gate of Gers,
Schmidhuber and Cummins (2000). Everything is in float64; `by_hand.py` compares.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Weights = dict[str, Tensor]
Params = dict[str, dict[str, Tensor]]
Data = tuple[Tensor, Tensor]


def rnn_loss(params: Params, data: Data, first: int = 0) -> tuple[Tensor, Weights]:
    """The loss of a plain recurrent network, and the state that it ends in.

    ``h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh)``, scores ``Why h[t] + by``, summed negative log-likelihoods from step `first`
    on. ``params["shifts"]`` are zeros added to every h and to every argument of the tanh: their gradients are dh and dhraw.
    """
    w, shifts, h = params["weights"], params["shifts"], params["state"]["h"]
    inputs, targets = data
    read, scores = w["Wxh"][:, inputs].T, []
    for t in range(len(inputs)):
        raw = read[t] + w["Whh"] @ h + w["bh"] + shifts["raw"][t]
        h = torch.tanh(raw) + shifts["h"][t]
        scores.append(w["Why"] @ h + w["by"])
    return cross_entropy(torch.stack(scores[first:]), targets[first:], reduction="sum"), {"h": h}


def rnn_by_hand(params: Params, data: Data, first: int = 0) -> tuple[Weights, Tensor, Weights]:
    """(the derivatives by Karpathy's names, the loss, the last state) of `rnn_loss`, written by hand."""
    w, (inputs, targets) = params["weights"], (part.tolist() for part in data)
    h, p, loss = {-1: params["state"]["h"]}, {}, torch.zeros((), dtype=torch.float64)
    for t in range(len(inputs)):
        h[t] = torch.tanh(w["Wxh"][:, inputs[t]] + w["Whh"] @ h[t - 1] + w["bh"])
        p[t] = torch.softmax(w["Why"] @ h[t] + w["by"], 0)
        loss = loss - p[t][targets[t]].log() if t >= first else loss
    d = {f"d{name}": torch.zeros_like(value) for name, value in w.items()}
    dh, dhraw, dhnext = [], [], torch.zeros_like(h[-1])
    for t in reversed(range(len(inputs))):
        dy = p[t].clone() if t >= first else torch.zeros_like(p[t])
        if t >= first:
            dy[targets[t]] -= 1
        d["dWhy"] += torch.outer(dy, h[t])
        d["dby"] += dy
        dh.append(w["Why"].T @ dy + dhnext)
        dhraw.append((1 - h[t] ** 2) * dh[-1])
        d["dbh"] += dhraw[-1]
        d["dWxh"][:, inputs[t]] += dhraw[-1]
        d["dWhh"] += torch.outer(dhraw[-1], h[t - 1])
        dhnext = w["Whh"].T @ dhraw[-1]
    steps = {"dh": torch.stack(dh[::-1]), "dhraw": torch.stack(dhraw[::-1]), "dhnext": dhnext}
    return d | steps, loss, {"h": h[len(inputs) - 1]}


def lstm_loss(params: Params, data: Data, first: int = 0) -> tuple[Tensor, Weights]:
    """The loss of an LSTM, and the state that it ends in.

    ``a = Wx x[t] + Wh h[t-1] + b`` in four parts; ``i, f, o = σ(a)``, ``g = tanh(a)``; ``c[t] = f c[t-1] + i g``,
    ``h[t] = o tanh(c[t])``. The gradients of ``params["shifts"]`` are dh, dc and da of every step.
    """
    w, shifts, h, c = params["weights"], params["shifts"], params["state"]["h"], params["state"]["c"]
    inputs, targets = data
    read, scores = w["Wx"][:, inputs].T, []
    for t in range(len(inputs)):
        i, f, o, g = (read[t] + w["Wh"] @ h + w["b"] + shifts["a"][t]).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g) + shifts["c"][t]
        h = torch.sigmoid(o) * torch.tanh(c) + shifts["h"][t]
        scores.append(w["Why"] @ h + w["by"])
    return cross_entropy(torch.stack(scores[first:]), targets[first:], reduction="sum"), {"h": h, "c": c}


def lstm_by_hand(params: Params, data: Data, first: int = 0) -> tuple[Weights, Tensor, Weights]:
    """(the derivatives, the loss, the last state) of `lstm_loss`, written by hand: `lstm_step_back` from the end."""
    w, (inputs, targets) = params["weights"], (part.tolist() for part in data)
    h, c = {-1: params["state"]["h"]}, {-1: params["state"]["c"]}
    gates, p, loss = {}, {}, torch.zeros((), dtype=torch.float64)
    for t in range(len(inputs)):
        i, f, o, g = (w["Wx"][:, inputs[t]] + w["Wh"] @ h[t - 1] + w["b"]).chunk(4)
        gates[t] = (torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o), torch.tanh(g))
        i, f, o, g = gates[t]
        c[t] = f * c[t - 1] + i * g
        h[t] = o * torch.tanh(c[t])
        p[t] = torch.softmax(w["Why"] @ h[t] + w["by"], 0)
        loss = loss - p[t][targets[t]].log() if t >= first else loss
    d = {f"d{name}": torch.zeros_like(value) for name, value in w.items()}
    dh, dc, da, dhnext, dcnext = [], [], [], torch.zeros_like(h[-1]), torch.zeros_like(c[-1])
    for t in reversed(range(len(inputs))):
        dy = p[t].clone() if t >= first else torch.zeros_like(p[t])
        if t >= first:
            dy[targets[t]] -= 1
        d["dWhy"] += torch.outer(dy, h[t])
        d["dby"] += dy
        dh.append(w["Why"].T @ dy + dhnext)
        d_c, d_a, dcnext = lstm_step_back(gates[t], c[t], c[t - 1], dh[-1], dcnext)
        dc.append(d_c)
        da.append(d_a)
        d["db"] += d_a
        d["dWx"][:, inputs[t]] += d_a
        d["dWh"] += torch.outer(d_a, h[t - 1])
        dhnext = w["Wh"].T @ d_a
    steps = {"dh": torch.stack(dh[::-1]), "dc": torch.stack(dc[::-1]), "da": torch.stack(da[::-1])}
    last = len(inputs) - 1
    return d | steps | {"dhnext": dhnext, "dcnext": dcnext}, loss, {"h": h[last], "c": c[last]}


def lstm_step_back(
    gates: tuple[Tensor, ...], c: Tensor, c_before: Tensor, d_h: Tensor, d_c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the LSTM backwards: (d_c of this step, d_a of its four gates, d_c handed to the step before)."""
    i, f, o, g = gates
    z = torch.tanh(c)
    d_c = d_c + (1 - z**2) * o * d_h
    d_a = torch.cat([i * (1 - i) * d_c * g, f * (1 - f) * d_c * c_before, o * (1 - o) * z * d_h, (1 - g**2) * d_c * i])
    return d_c, d_a, f * d_c


def rnn_params(characters: int, steps: int, hidden: int) -> Params:
    """Small random weights, zero shifts, a zero state; float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"Wxh": (hidden, characters), "Whh": (hidden, hidden), "bh": (hidden,)}
    return assemble(shapes, {"raw": (steps, hidden), "h": (steps, hidden)}, {"h": (hidden,)}, characters, generator)


def lstm_params(characters: int, steps: int, hidden: int) -> Params:
    """Small random weights with a forget bias of one, zero shifts, a zero state; float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"Wx": (4 * hidden, characters), "Wh": (4 * hidden, hidden), "b": (4 * hidden,)}
    shifts = {"a": (steps, 4 * hidden), "c": (steps, hidden), "h": (steps, hidden)}
    params = assemble(shapes, shifts, {"h": (hidden,), "c": (hidden,)}, characters, generator)
    params["weights"]["b"][hidden : 2 * hidden] = 1
    return params


def assemble(weights: dict, shifts: dict, state: dict, characters: int, generator: torch.Generator) -> Params:
    """Tensors of these shapes: the weights and the output layer drawn, everything else zero."""
    hidden = state["h"][0]
    shapes = weights | {"Why": (characters, hidden), "by": (characters,)}

    def draw(shape: tuple[int, ...]) -> Tensor:
        scale = hidden**-0.5 if len(shape) > 1 else 0.0
        return scale * torch.randn(shape, dtype=torch.float64, generator=generator)

    return {
        "weights": {name: draw(shape) for name, shape in shapes.items()},
        "shifts": {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shifts.items()},
        "state": {name: torch.zeros(shape, dtype=torch.float64) for name, shape in state.items()},
    }
