"""`check_module`: everything about a module that a check of a function cannot see, and that check besides."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from hesse.check.check_report import CheckReport, WrongDerivativeError
from hesse.check.functions.case import Level, first_line
from hesse.check.isolated import isolated as run_isolated
from hesse.check.isolation.news import Running, tell
from hesse.check.modules.accumulation import check_accumulation, check_reuse, check_sharing, check_update
from hesse.check.modules.buffers import check_buffers
from hesse.check.modules.call import Call
from hesse.check.modules.copies import check_copies, check_state, check_trained
from hesse.check.modules.diagonal import Diagonal, check_diagonal
from hesse.check.modules.duplicates import check_duplicates
from hesse.check.modules.exact import check_slope, exact_specimen
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.mutation import Watch
from hesse.check.modules.passes import (
    check_additivity,
    check_first_run,
    check_graph,
    check_layouts,
    check_repeats,
)  # fmt: skip
from hesse.check.modules.shapes import check_shapes
from hesse.check.modules.specimen import Run, Specimen
from hesse.check.modules.start import sound_specimen
from hesse.check.modules.subsets import check_subsets
from hesse.check.modules.transforms import check_adjoint, check_vmap
from hesse.check.modules.untouched import recording, untouched
from hesse.check.modules.values import check_values
from hesse.core.errors import StructureError
from hesse.core.random import make_generator

_EVALUATIONS = {"quick": 60, "full": 1000}
_LEAST = 20  # evaluations that the checks of functions get in any case


def check_module(
    module: nn.Module,
    *inputs: Any,
    level: Level = "quick",
    isolated: bool = False,
    generator: torch.Generator | None = None,
    diagonal: Diagonal | None = None,
    **named: Any,
) -> CheckReport:
    """Check a module: its derivatives by parameters, buffers and inputs, and whether it behaves as modules have to.

    Derivatives are those of `check_derivatives`, with parameters and floating-point inputs by name. Beyond them, on the
    module's own parameters: accumulation into `.grad` (fresh, twice, filled) and updates through it, parameters shared by two
    modules, two calls in one graph, parameters or inputs alone, mutation, strides, the other mode (train or eval). At level
    full also: every subset of `requires_grad`, 100 repeats, state dicts, pickling and saving, other batch sizes and none,
    buffers, `vmap`, and the module's own Gauss-Newton diagonal.

    Nothing of the module changes: a copy is checked, or where there is none, the module itself, which is put back as it was.
    Random numbers (dropout) are the same in every run; buffers (running statistics) start each run alike.

    Args:
        module: any module that runs in Python; lazy ones too.
        *inputs: of the call: trees of tensors (integers and Python numbers are held; sparse tensors move where they store
            values).
        level: "quick", or "full".
        isolated: whether the check runs in a process of its own, so that a crash or a hang becomes a finding
            (`hesse.check.isolated`).
        generator: of cotangents and directions; without one, the same ones each time.
        diagonal: the module's own Gauss-Newton diagonal, as a function of the inputs of the call, such as a bound method; by
            default its method `diag_hessian`, if it has one. It returns sum_o (d y_o / d leaf)^2 over all output elements:
            a dict by name ("weight", "inputs.0"), or a tensor or a tuple for the inputs in order.
        **named: keyword inputs of the call.

    Returns:
        The report; `.ok` says whether everything is confirmed.

    Raises:
        StructureError: no module that runs in Python, parameters made under `torch.inference_mode()`, an unknown level, a
            diagonal that cannot be called, or no floating-point output.
        LeafError: nothing that moves.
        NonFiniteError: a value that is not finite.

    Cost: at level quick up to 60 evaluations, at level full up to 1,000.
    """
    _require_checkable(module, level, diagonal)
    if isolated:
        run = partial(check_module, module, *inputs, level=level, generator=generator, diagonal=diagonal, **named)
        return run_isolated(run, name=type(module).__name__, level=level)
    ledger = Ledger()
    generator = make_generator() if generator is None else generator
    tell(Running("first run"))
    with untouched(module), recording():
        call = Call(inputs, named)
        specimen, run = sound_specimen(module, call, generator, ledger)
        evaluations = specimen.evaluations if run is None else _checked(specimen, run, level, ledger, diagonal)
    name, notes, findings = type(module).__name__, tuple(dict.fromkeys(ledger.notes)), tuple(ledger.findings)
    return CheckReport(name, level, tuple(ledger.rows), findings, notes, evaluations, ledger.reproducer)


def assert_module(
    module: nn.Module,
    *inputs: Any,
    level: Level = "quick",
    isolated: bool = False,
    generator: torch.Generator | None = None,
    diagonal: Diagonal | None = None,
    **named: Any,
) -> None:
    """Raise unless `check_module` confirms a module.

    Args:
        module, *inputs, level, isolated, generator, diagonal, **named: as for `check_module`.

    Raises:
        WrongDerivativeError: an `AssertionError` with the report.

    Cost: that of `check_module`.
    """
    report = check_module(module, *inputs, level=level, isolated=isolated, generator=generator, diagonal=diagonal, **named)
    if not report.ok:
        raise WrongDerivativeError(f"{report.name} was to be confirmed.", str(report), "mend what the findings name")


def _require_checkable(module: nn.Module, level: str, diagonal: Diagonal | None) -> None:
    if level not in _EVALUATIONS:
        raise StructureError("check_module has two levels.", f"level={level!r}", "pass 'quick' or 'full'")
    if not isinstance(module, nn.Module):
        raise StructureError("check_module(module, *inputs) takes an nn.Module.", type(module).__name__,
                             "pass a module, or call check_derivatives(f, x)")  # fmt: skip
    if isinstance(module, (torch.jit.ScriptModule, nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise StructureError("check_module checks modules that run in Python.", type(module).__name__,
                             "pass the plain module: .module of a parallel one, the original of a scripted one")  # fmt: skip
    inference = [name for name, p in module.named_parameters() if not nn.parameter.is_lazy(p) and p.is_inference()]
    if inference:
        raise StructureError("check_module differentiates by parameters.", f"'{inference[0]}' was made under inference_mode()",
                             "make the module outside of torch.inference_mode()")  # fmt: skip
    if diagonal is not None and not callable(diagonal):
        raise StructureError("diagonal= is a function of the inputs of the call.", type(diagonal).__name__,
                             "pass a function, such as a bound method, or leave it out")  # fmt: skip


def _checked(s: Specimen, run: Run, level: Level, ledger: Ledger, diagonal: Diagonal | None) -> int:
    """Everything in both modes; how often the module ran."""
    full = level == "full"
    _behavior(s, run, ledger, full=full)
    ledger.attempt("Gauss-Newton diagonal", lambda: check_diagonal(s, ledger, diagonal))
    other = _other_mode(s, ledger, full=full)
    if full:
        by_row = s if other is None or not s.module.training else other
        check_shapes(by_row, ledger)
    spent = s.evaluations + (other.evaluations if other is not None else 0)
    report = check_values(s, level, max(_EVALUATIONS[level] - spent, _LEAST))
    ledger.take(report)
    return report.evaluations + spent


def _behavior(s: Specimen, run: Run, ledger: Ledger, *, full: bool) -> None:
    """What a module does besides computing, in the mode that it is in."""
    ledger.attempt("accumulation into .grad", lambda: check_accumulation(s, ledger))
    check_subsets(s, ledger, every=full)
    ledger.attempt("duplicated indices", lambda: check_duplicates(s, ledger))
    if s.copyable:
        ledger.attempt("two modules that share parameters", lambda: check_sharing(s, ledger))
        ledger.attempt("state_dict", lambda: check_state(s, ledger))
    if full:
        ledger.attempt("passes of one graph", lambda: check_graph(s, run, ledger))
        ledger.attempt("sum of cotangents", lambda: check_additivity(s, run, ledger))
        ledger.attempt("two calls in one graph", lambda: check_reuse(s, ledger))
        ledger.attempt("strides of inputs", lambda: check_layouts(s, ledger))
        if s.copyable:
            ledger.attempt("adjoint identity", lambda: check_adjoint(s, ledger))
            ledger.attempt("vmap", lambda: check_vmap(s, ledger))
            ledger.attempt("update through .grad", lambda: check_update(s, ledger))
            check_copies(s, ledger)
            ledger.attempt("state after training", lambda: check_trained(s, ledger))
        check_buffers(s, ledger)
        ledger.attempt("repeats", lambda: check_repeats(s, ledger))


def _other_mode(s: Specimen, ledger: Ledger, *, full: bool) -> Specimen | None:
    """The same in the mode, train or eval, that the module is not in; None where it is the same, or raises."""
    flags = {part: part.training for part in s.module.modules()}
    other = copy.copy(s)
    other.module = s.copied() if s.copyable else s.module
    other.original = other.module
    other.evaluations, other.draws = 0, False
    mode = "eval" if s.module.training else "train"
    other.module.train(mode == "train")
    before, ledger.prefix = ledger.prefix, f"{mode} mode: "
    try:
        return _in_mode(other, ledger, s, full=full)
    finally:
        ledger.prefix = before
        if not s.copyable:
            for part, flag in flags.items():
                part.training = flag


def _in_mode(other: Specimen, ledger: Ledger, s: Specimen, *, full: bool) -> Specimen | None:
    watch = Watch(other)
    try:
        run = other.run(None, watch.inputs)
        if {name: y.shape for name, y in run.outputs.items()} != {name: u.shape for name, u in s.cotangents.items()}:
            other.start(run)
        other.outputs, other.gradients = {name: y.detach() for name, y in run.outputs.items()}, run.pull(other.cotangents)
    except Exception as error:
        ledger.note(f"the module raises {first_line(error)}")
        s.evaluations += other.evaluations
        return None
    watch.forward(ledger)
    own, known = ([*x.outputs.values(), *x.gradients.values()] for x in (other, s))
    if ledger.close(own, known):
        ledger.fine("the same outputs and gradients")
        s.evaluations += other.evaluations
        return None
    exact = exact_specimen(other)
    if exact is not None:
        ledger.attempt("reverse mode", lambda: check_slope(exact, ledger, "reverse mode"))
        other.evaluations += exact.evaluations
    if full:
        ledger.attempt("unchanged", lambda: check_first_run(other, ledger))
        ledger.attempt("accumulation into .grad", lambda: check_accumulation(other, ledger))
        ledger.attempt("two calls in one graph", lambda: check_reuse(other, ledger))
        ledger.take(check_values(other, "quick", _EVALUATIONS["quick"]))
    return other
