"""The LSTM of oneDNN, which runs `nn.LSTM` in float32 on a CPU: one node a layer and direction.

Gates from ``a[t] = W_ih x[t] + b_ih + W_hh h[t-1] + b_hh`` in the order i, f, g, o; ``c[t] = f c[t-1] + i g`` and
``h[t] = o tanh c[t]`` (Hochreiter, Schmidhuber 1997; Gers, Schmidhuber, Cummins 2000). The node keeps every h[t], so that the
a[t] of all steps are one matrix product each with W_ih and W_hh. Rows are sums over steps of the cotangent of a[t] times x[t],
h[t-1] and 1; these cotangents follow from one sweep back in time (Werbos 1990), which the fused backward pass makes too, but
does not return.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.rules.forms import Contract, Dense, Form
from hesse.rules.layers.meeting import Meeting, SampleAxis, layer_rules

_LSTM = 2  # the op's number for it


@dataclass(frozen=True, eq=False)
class _Factors:
    """What the rows of a layer's weights are made of, ``[n, 1, t, ...]``: cotangents of the gates, x[t] and h[t-1]."""

    gates: Tensor
    inputs: Tensor
    states: Tensor


@layer_rules.register("MkldnnRnnLayerBackward0")
def lstm_layer(meeting: Meeting) -> Form | None:
    """``mkldnn_rnn_layer(input, w_ih, w_hh, b_ih, b_hh, hx, cx, ...)``, time first, either direction.

    Cost: about one forward pass of the layer and, without the weights' gradients, one backward pass; once for all weights.
    """
    place = _place(meeting)
    if place is None or meeting.index not in (1, 2, 3, 4) or meeting.saved("mode") != _LSTM or meeting.saved("batch_sizes"):
        return None
    if meeting.saved("input").dtype != torch.float32:
        return None
    factors = meeting.once(lambda: _factors(meeting, place))
    if meeting.index > 2:
        return Dense(factors.gates.sum((1, 2)))
    return Contract(factors.gates, factors.inputs if meeting.index == 1 else factors.states)


def _place(meeting: Meeting) -> SampleAxis | None:
    """Where the samples are in the sequences ``[T, N, ...]``, if all outputs that are used agree on it."""
    places = {
        SampleAxis(where.axis + (output != 0), where.before, where.after)
        for output, where in meeting.places.items()
        if output in meeting.cotangents
    }
    place = places.pop()
    return place if not places and place.axis == 1 else None


def _factors(meeting: Meeting, place: SampleAxis) -> _Factors:
    x = meeting.saved("input")
    states = _previous(meeting.saved("result0"), meeting.saved("hx_"), meeting.saved("reverse"))
    gates = _gate_cotangents(meeting, x, states)
    return _Factors(*(place.rows(sequence).flatten(1, 2).unsqueeze(1) for sequence in (gates, x, states)))


def _gate_cotangents(meeting: Meeting, x: Tensor, states: Tensor) -> Tensor:
    """``[T, N, 4H]``: the cotangents of a[t], from x ``[T, N, I]`` and the states before each step ``[T, N, H]``."""
    reverse, start = meeting.saved("reverse"), meeting.saved("cx_")
    order = range(len(x))[:: -1 if reverse else 1]
    i, f, g, o = _gates(meeting, x, states)
    cells = _cells(i * g, f, start, order)
    squashed = cells.tanh()
    slopes = [
        torch.ops.aten.sigmoid_backward(g, i),
        torch.ops.aten.sigmoid_backward(_previous(cells, start, reverse), f),
        torch.ops.aten.tanh_backward(i, g),
        torch.ops.aten.sigmoid_backward(squashed, o),
    ]
    return _sweep(meeting, torch.stack(slopes, 2), torch.ops.aten.tanh_backward(o, squashed), f, order)


def _previous(sequence: Tensor, start: Tensor, reverse: bool) -> Tensor:
    """What came one step before, of the shape of the sequence."""
    first = start.reshape(1, *sequence.shape[1:])
    return torch.cat([sequence[1:], first] if reverse else [first, sequence[:-1]])


def _gates(meeting: Meeting, x: Tensor, states: Tensor) -> list[Tensor]:
    """The gates i, f, g, o of all steps, ``[T, N, H]`` each."""
    data, w_hh = states.flatten(0, 1), meeting.saved("weight1")
    if meeting.saved("has_biases"):
        a = torch.addmm(meeting.saved("weight2") + meeting.saved("weight3"), data, w_hh.mT)
    else:
        a = data @ w_hh.mT
    a = torch.addmm(a, x.flatten(0, 1), meeting.saved("weight0").mT)
    i, f, g, o = a.reshape(*states.shape[:2], 4, -1).unbind(2)
    return [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]


def _cells(new: Tensor, f: Tensor, start: Tensor, order: range) -> Tensor:
    """``c[t] = f[t] c[t-1] + new[t]``, ``[T, N, H]``."""
    found, news, keep = [start] * len(order), new.unbind(), f.unbind()
    for t in order:
        start = found[t] = torch.addcmul(news[t], keep[t], start)
    return torch.stack(found)


def _sweep(meeting: Meeting, slopes: Tensor, state_by_cell: Tensor, f: Tensor, order: range) -> Tensor:
    """The cotangents of the gates before their nonlinearities, last step first.

    Args:
        meeting: of the layer.
        slopes: ``[T, N, 4, H]``, derivatives of c[t] by the first three parts of a[t] and of h[t] by the last; overwritten with
            the result unless that is to be differentiable.
        state_by_cell: ``[T, N, H]``, the derivative of h[t] by c[t].
        f: ``[T, N, H]``, the derivative of c[t] by c[t-1].
        order: of the steps.

    Returns:
        ``[T, N, 4H]``.
    """
    nothing, w_hh = torch.zeros_like(f[0]), meeting.saved("weight1")
    g_state, g_cell = meeting.cotangents.get(1, nothing), meeting.cotangents.get(2, nothing)
    outer = meeting.cotangents[0].unbind() if 0 in meeting.cotangents else (nothing,) * len(order)
    by_gates, by_output = slopes[:, :, :3].unbind(), slopes[:, :, 3].unbind()
    found, by_cell, keep = list(slopes.flatten(2).unbind()), state_by_cell.unbind(), f.unbind()
    g_state = g_state + outer[order[-1]]
    for t in reversed(order):
        g_cell = torch.addcmul(g_cell, g_state, by_cell[t])
        if meeting.attached:
            found[t] = torch.cat([(by_gates[t] * g_cell.unsqueeze(1)).flatten(1), by_output[t] * g_state], 1)
        else:
            by_gates[t].mul_(g_cell.unsqueeze(1))
            by_output[t].mul_(g_state)
        if t != order[0]:
            g_state = torch.addmm(outer[t - order.step], found[t], w_hh)
            g_cell = g_cell * keep[t]
    return torch.stack(found) if meeting.attached else slopes.flatten(2)
