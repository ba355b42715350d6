"""`compile_rows`: the door to compiled per-sample quantities, which brings the tracer at its first use only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hesse.autodiff.compiled.mode import Mode, require_mode
from hesse.autodiff.model import Selection
from hesse.autodiff.roots import Loss, Outputs
from hesse.core.errors import StructureError

if TYPE_CHECKING:
    from hesse.parameters.compiled_rows import CompiledRows

ASKED = "compile_rows(model, loss, quantity) records what is asked of a batch's parameter Jacobian, and replays it."


def compile_rows(
    model: Any,
    loss: Loss,
    quantity: Callable[..., Any],
    *,
    params: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
    outputs: Outputs = None,
    compile: Mode = "replay",
) -> CompiledRows:
    """Per-sample quantities of one batch after the other, replayed from a record instead of captured anew.

    It is for training loops, in which parameters and batches change at each step and shapes stay. It pays for small models,
    where time goes into the bookkeeping around each operation; the benchmark of compiled products says from how many calls on.
    What is wanted is one function of the Jacobian, so that one record holds the forward pass, the backward pass and all that is
    asked.

    Args:
        model, loss, params, output, outputs: as for `parameter_jacobian`.
        quantity: what is wanted of the Jacobian: ``lambda J: J.clipped_sum(1.0)``, ``lambda J: (J.norms(), J.gram())``. Further
            arguments of a call are passed on to it: tensors among them may have other numbers at each call. It returns tensors
            and numbers, in tuples, lists, dicts, `Moments`.
        compile: "off": `quantity` of a new Jacobian at each call. "replay": a call of a new kind is recorded (the second
            one, where the first has to plan a new graph), later ones run its operations. "native": they are compiled by
            inductor, which takes seconds.

    Returns:
        A function ``rows(batch, *arguments)``; also `compile_seconds`, `replays` and `direct`. Results equal those of
        ``quantity(parameter_jacobian(model, loss, batch), *arguments)`` to rounding: each record is compared with its call. A
        record is asked only while shapes, dtypes, strides, devices, modes, hooks, options and settings are those that it was
        made with, and while what Python read of tensors is the same: a branch; `J.mass` of a loss whose normalizer depends on
        the targets (`J.normalizer` is a tensor, of which nothing is read). Otherwise the call is captured and recorded anew. A
        call runs directly, and a `CompileNotice` says why once, where it differs each time, where samples have to be run one by
        one, and where code of yours does what no record can repeat; without a notice under a memory budget, inside a
        `torch.func` transform and in inference mode.

    Raises:
        StructureError: `quantity` is no function, or an unknown way; at a call, something else than one batch. What
            `parameter_jacobian` raises, at a call.

    Cost: one or two calls of each kind are captured directly, with about 30 microseconds more an operation for the record;
        "native" 2 to 20 seconds of compiling. A record holds intermediate results of one batch, as `parameter_jacobian` does.
    """
    require_mode(compile, ASKED)
    if not callable(quantity):
        raise StructureError(ASKED, f"a {type(quantity).__name__} as quantity", "pass a function: lambda J: J.norms()")
    from hesse.parameters.compiled_rows import CompiledRows, Rows

    chosen = params if params is None or callable(params) or isinstance(params, str) else list(params)
    return CompiledRows(Rows(model, loss, quantity, chosen, output, outputs), compile)


