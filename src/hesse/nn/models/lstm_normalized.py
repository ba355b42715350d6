"""The LSTM with batch normalization: statistics of their own for each time step, up to a maximum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.nn.models.batch_normalization import Statistics, batch_norm
from hesse.nn.models.recurrence import Carried, Recurrence, project


@dataclass(frozen=True)
class NormalizedLSTMFunction(Recurrence):
    """The pure function that `RecurrentLSTMNetwork` returns with batch normalization.

    The state's "statistics": "gates" and "cell", each with ``running_mean`` and ``running_var``, one row for each time step up
    to the maximum, ``[layers, 4 hidden]`` and ``[layers, hidden]``.
    """

    max_batch_normalization_layers: int

    carries: ClassVar[tuple[str, ...]] = ("h", "c")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_batch_normalization_layers < 1:
            asked = "max_batch_normalization_layers is at least 1."
            raise StructureError(asked, f"{self.max_batch_normalization_layers}", "pass the number of distinguished steps")

    def initial_state(self, params: Tree) -> Tree:
        """``{"statistics": ...}`` before any batch: mean 0, variance 1."""
        return {"statistics": {name: self._initial(params[name]["weight"].detach()) for name in ("gates", "cell")}}

    def _initial(self, weight: Tensor) -> Statistics:
        shape = (self.max_batch_normalization_layers, *weight.shape)
        return {"running_mean": weight.new_zeros(shape), "running_var": weight.new_ones(shape)}

    def _extras(self) -> tuple[str, ...]:
        return ("statistics",)

    def _walk(
        self, params: Tree, x: Tensor, carried: Carried, state: dict[str, Any], *, training: bool
    ) -> tuple[list[Tensor], Carried, dict[str, Any]]:
        given = state.get("statistics") or self.initial_state(params)["statistics"]
        of_gates, of_cell = _rows(given["gates"]), _rows(given["cell"])
        weights, outputs, (h, c) = params["weight_hh"].t(), [], carried
        for t, inputs in enumerate(project(params, x).unbind(1)):
            row = min(t, self.max_batch_normalization_layers - 1)
            gates = torch.addmm(inputs, h, weights)
            gates, of_gates[row] = batch_norm(gates, params["gates"], of_gates[row], training=training)
            i, f, g, o = gates.chunk(4, 1)
            c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
            cell, of_cell[row] = batch_norm(c, params["cell"], of_cell[row], training=training)
            h = o.sigmoid() * cell.tanh()
            outputs.append(h)
        return outputs, (h, c), {"statistics": {"gates": _together(of_gates), "cell": _together(of_cell)}}


def _rows(statistics: Statistics) -> list[Statistics]:
    means, variances = statistics["running_mean"].unbind(), statistics["running_var"].unbind()
    return [{"running_mean": m, "running_var": v} for m, v in zip(means, variances, strict=True)]


def _together(rows: list[Statistics]) -> Statistics:
    return {name: torch.stack([row[name] for row in rows]) for name in ("running_mean", "running_var")}
