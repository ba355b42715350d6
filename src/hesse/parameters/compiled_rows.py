"""Per-sample quantities, recorded once and replayed for other parameters and other batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from hesse.autodiff.compiled.function import CompiledFunction
from hesse.autodiff.compiled.mode import CompileNotice, Mode
from hesse.autodiff.compiled.profile import Profile
from hesse.autodiff.compiled.unrecorded import note_irregular
from hesse.autodiff.functional import runs_elsewhere
from hesse.autodiff.model import Selection, is_one_batch
from hesse.autodiff.roots import Loss, Outputs
from hesse.autodiff.source_lines import warn_user
from hesse.core.errors import StructureError
from hesse.core.memory import given_budget
from hesse.parameters.compile_rows import ASKED
from hesse.parameters.contractions import Moments
from hesse.parameters.make import parameter_jacobian

pytree.register_dataclass(Moments)  # so that a record can give them


@dataclass(frozen=True, eq=False)
class Rows:
    """What is asked of the Jacobian of every batch.

    Attributes:
        model, loss, quantity, params, output, outputs: as for `compile_rows`.
    """

    model: Any
    loss: Loss
    quantity: Callable[..., Any]
    params: Selection
    output: Callable[[Any], Tensor] | None
    outputs: Outputs

    def __call__(self, batch: Any, *arguments: Any) -> Any:
        """The quantity of a batch, captured directly."""
        J = parameter_jacobian(self.model, self.loss, batch, params=self.params, output=self.output, outputs=self.outputs)
        found = self.quantity(J, *arguments)
        if torch.is_grad_enabled() and _requires_grad(found):
            note_irregular("its results can be differentiated by what the quantity is given", lasting=True)
        return found


class CompiledRows:
    """A quantity of the Jacobian of one batch after the other, replayed; made by `compile_rows`.

    Calling it with a batch, and with what `quantity` takes besides, gives the quantity. Two threads may call it.
    """

    def __init__(self, rows: Rows, compile: Mode) -> None:
        self._rows, self._compile = rows, compile
        self._profile = Profile("summary")
        self._compiled: CompiledFunction | None = None
        if compile != "off":
            made = CompiledFunction(rows, rows, mode=compile, variables=(), signature=_signature, profile=self._profile)
            made.looks, made.notice, made.disturbances = True, self._notice, self._disturbances
            self._compiled = made

    @property
    def compile_seconds(self) -> float:
        """Wall-clock seconds spent on recording and compiling so far, the recorded calls' own work included."""
        report = self._profile.report()
        return report.tracing + report.compiling

    @property
    def replays(self) -> int:
        """Calls that were replayed."""
        return self._profile.report().hits

    @property
    def direct(self) -> str:
        """Why calls of some kind run directly; empty where none does."""
        return "" if self._compiled is None else self._compiled.direct

    def __call__(self, batch: Any, *arguments: Any) -> Any:
        if not isinstance(batch, (Tensor, dict)) and not is_one_batch(batch):
            raise StructureError(ASKED, f"a {type(batch).__name__} of several", "call it with one batch: (inputs, targets)")
        if self._compiled is None:
            return self._rows(batch, *arguments)
        return self._compiled((batch, *arguments), {})

    def _notice(self, text: str) -> None:
        warn_user(f"{self!r} {text}", CompileNotice)

    def _disturbances(self) -> int:
        model = self._rows.model[0] if isinstance(self._rows.model, tuple) else self._rows.model
        module = model if isinstance(model, nn.Module) else getattr(model, "module", None)
        return runs_elsewhere(module if isinstance(module, nn.Module) else None)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy records anew: what was recorded belongs to this model's tensors."""
        return CompiledRows, (self._rows, self._compile)

    def __repr__(self) -> str:
        name = getattr(self._rows.quantity, "__qualname__", type(self._rows.quantity).__name__)
        model = self._rows.model[0] if isinstance(self._rows.model, tuple) else self._rows.model
        return f"CompiledRows({name} of {getattr(model, '__qualname__', type(model).__name__)}, {self._compile})"


def _signature(*args: Any) -> Any:
    """What calls that share a record have in common besides what the record compares; None: they run directly."""
    if torch.is_inference_mode_enabled() or given_budget(None) is not None:
        return None
    return torch.is_grad_enabled()


def _requires_grad(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(value))
