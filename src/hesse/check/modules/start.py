"""What of a user's module can be worked on: a sound copy, or the module itself, and the inputs that it is differentiable in."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn

from hesse.check.functions.case import first_line
from hesse.check.modules.call import Call
from hesse.check.modules.discrete import hold_discrete
from hesse.check.modules.first_call import initialized, materialized, remembered
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.memory import check_memory
from hesse.check.modules.passes import check_first_run
from hesse.check.modules.specimen import Named, Run, Specimen, fresh_copy
from hesse.check.modules.unregistered import check_registered, held_results
from hesse.core.errors import LeafError, NonFiniteError

_UNCHANGED = "parameters unchanged"
_WITHIN = 0.9  # of a table's max_norm: so long are its rows made, at most


class _NoBackward(Exception):
    """The backward pass raises."""


def sound_specimen(module: nn.Module, call: Call, generator: torch.Generator, ledger: Ledger) -> tuple[Specimen, Run | None]:
    """The module ready for a check: a copy that does what the module does, or where there is none, the module in place.

    Args:
        module: the user's, `untouched` around this.
        call: its inputs; those that it is not differentiable in are held here.
        generator: of cotangents.
        ledger: where to report.

    Returns:
        The specimen, and its first run; None where two runs differ, so that nothing else can be said.

    Raises:
        LeafError: nothing that moves.
        NonFiniteError: values that are not finite.

    Cost: 2 gradients, and up to 2 more where copies or runs differ.
    """
    own = materialized(module, call, ledger)
    specimen = Specimen(own, call, generator)
    if not specimen.parameters() and not call.moving:
        raise LeafError("Derivatives of a module by its parameters and inputs are checked.",
                        "no floating-point parameter that requires gradients and no floating-point input",
                        "unfreeze a parameter, or check the module where it gets floating-point numbers")  # fmt: skip
    with suppress(Exception):
        specimen.pristine = fresh_copy(own)
    results = held_results(own)
    try:
        run, gradients = _first(specimen, ledger)
    except _NoBackward as error:
        ledger.wrong("backward pass", f"raises {error}")
        return specimen, None
    _require_finite(type(module).__name__, run)
    ready = initialized(specimen)
    if ready is not None:
        ledger.note("the first call sets parameters by its data: the module was checked after such a call")
        return sound_specimen(ready, call, generator, ledger)
    ledger.dtypes = specimen.dtypes
    ledger.attempt("registered parameters", lambda: check_registered(specimen, run, ledger, results))
    check_memory(own, ledger)
    held = len(call.held)
    hold_discrete(specimen, ledger, {name: y.detach() for name, y in run.outputs.items()})
    if len(call.held) > held:
        run, gradients = _pulled(specimen)
    _require_unchanged(specimen, ledger)
    outputs = {name: y.detach().clone() for name, y in run.outputs.items()}
    first = _copied(specimen, ledger, outputs, gradients)
    frozen = [name for name, p in own.named_parameters() if not p.requires_grad]
    if frozen:
        ledger.note(f"frozen parameters were held: {', '.join(frozen[:5])}{' ...' if len(frozen) > 5 else ''}")
    if specimen.draws:
        ledger.note("the module draws random numbers: the same ones in every run of the check")
    return specimen, first


def _require_finite(name: str, run: Run) -> None:
    for output, y in run.outputs.items():
        if not y.isfinite().all():
            where = f"output '{output}'" if output else "the output"
            raise NonFiniteError(f"The derivatives of {name} are checked where its values are finite.",
                                 f"NaN or infinity in {where}", "choose another input")  # fmt: skip


def _first(s: Specimen, ledger: Ledger) -> tuple[Run, Named]:
    """The first run of the user's module, with inputs held that it refuses to be differentiated by."""
    try:
        return _pulled(s)
    except _NoBackward as error:
        reason = str(error)
    except Exception as error:
        reason = first_line(error)
    s.run(only=[])  # raises what the module raises on such inputs, differentiated or not
    for name in list(s.call.moving):
        others = set(s.call.values) - {name}
        s.call.held, before = others, s.call.held
        try:
            _pulled(s)
            s.call.held = before
        except Exception:
            s.call.held = before | {name}
    if s.call.held:
        ledger.note(f"held, since the module is not differentiable in it: {', '.join(sorted(s.call.held))} ({reason})")
    return _pulled(s)


def _pulled(s: Specimen) -> tuple[Run, Named]:
    run = s.run()
    s.start(run)
    try:
        return run, run.pull(s.cotangents)
    except Exception as error:
        raise _NoBackward(first_line(error)) from error


def _copied(s: Specimen, ledger: Ledger, outputs: Named, gradients: Named) -> Run | None:
    """Replace the module by a copy, if that gives the same outputs and gradients; its first run, None where runs differ."""
    try:
        s.module = fresh_copy(s.module)
    except Exception as error:
        ledger.note(f"the module cannot be copied ({first_line(error)}): it was checked in place, and put back")
        s.copyable = False
    if s.copyable:
        rows, findings = len(ledger.rows), len(ledger.findings)
        try:
            if run := _same(s, ledger, outputs, gradients):
                if _keep_within_norm(s.module, ledger):
                    del ledger.rows[rows:], ledger.findings[findings:]  # rows as long as allowed are cut for their rounding
                    s.original = s.module
                    run = check_first_run(s, ledger)
                return run
            reason = "the copy of the module is another function"
        except Exception as error:
            reason = f"the copy of the module raises {first_line(error)}"
    else:
        reason = ""
    s.module, s.copyable = s.original, False
    run = _same(s, ledger, outputs, gradients)
    if run is None and not any(finding.check == _UNCHANGED for finding in ledger.findings):
        kept = [f"'{name}'" for name in remembered(s)]
        ledger.wrong("non-determinism", "two runs with the same random state differ: " + (
            f"the module remembers {', '.join(kept[:3])} from call to call" if kept
            else "no dropout, but a counter, a clock, or memory"))  # fmt: skip
    if run is not None and reason:
        _report_copy(s, ledger, reason)
    return run


def _require_unchanged(s: Specimen, ledger: Ledger) -> None:
    """Find parameters that a run changes; tables with `max_norm` are cut by every run."""
    if s.pristine is not None:
        before = dict(s.pristine.named_parameters())
        cut = {id(part._parameters.get("weight")) for part in s.original.modules() if vars(part).get("max_norm")}
        now = {name: p for name, p in s.parameters(s.original).items() if id(p) not in cut and name in before}
        ledger.equal(_UNCHANGED, now, before, "changed in place by a run")


def _same(s: Specimen, ledger: Ledger, outputs: Named, gradients: Named) -> Run | None:
    """The first run of the specimen's module, if it is the same as that of the user's; what it reports is dropped if not."""
    rows, findings = len(ledger.rows), len(ledger.findings)
    run = check_first_run(s, ledger)
    values = [*s.outputs.values(), *(s.gradients.get(name, torch.zeros(0)) for name in gradients)]
    if ledger.close(values, [*outputs.values(), *gradients.values()]):
        return run
    del ledger.rows[rows:], ledger.findings[findings:]
    return None


def _report_copy(s: Specimen, ledger: Ledger, reason: str) -> None:
    """Say in what the copy differs, and whether hooks on parameters, which no copy has, are the cause."""
    hooked = [name for name, p in s.original.named_parameters() if p._backward_hooks]
    if hooked:
        ledger.wrong("gradients of parameters with hooks", "a hook on the parameter changes its gradient", hooked[0])
        return

    def compare() -> None:
        found = s.gradient(fresh_copy(s.original))
        if ledger.agree("deepcopy: outputs", found[0], s.outputs, words="of the copy"):
            ledger.agree("deepcopy: gradients", found[1], {**found[1], **s.gradients}, words="of the copy")

    count = len(ledger.findings)
    ledger.attempt("deepcopy", compare)
    if len(ledger.findings) == count:
        ledger.wrong("deepcopy", reason)
    ledger.note("the module was checked in place, and put back, since its copy is another function")


def _keep_within_norm(module: nn.Module, ledger: Ledger) -> bool:
    """Make the rows of tables with `max_norm` shorter than that, so that the forward pass, which cuts them, writes nothing."""
    found = False
    for part in module.modules():
        bound, table = vars(part).get("max_norm"), part._parameters.get("weight")  # a property might compute something
        if isinstance(bound, (int, float)) and table is not None and table.dim() == 2:
            norms = torch.linalg.vector_norm(table.detach(), ord=getattr(part, "norm_type", 2.0), dim=1, keepdim=True)
            with torch.no_grad():
                table.mul_(torch.clamp(_WITHIN * bound / norms.clamp_min(1e-30), max=1.0))
            ledger.note("a table with max_norm was checked with shorter rows: the forward pass writes to longer ones")
            found = True
    return found
