"""Which leaves require gradients: every subset gives the same gradients for those in it, and none for the others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from hesse.check.modules.ledger import Ledger
from hesse.check.modules.mutation import Watch
from hesse.check.modules.specimen import Named, Specimen

_EVERY = 6  # leaves: of so many, all subsets are tried
_SAMPLED = 24  # random subsets of more leaves, besides each alone, all but each, parameters and inputs
_OTHERS = "the outputs are others"
_ENDS = 16  # leaves of which each is tried alone and left out alone


def check_subsets(specimen: Specimen, ledger: Ledger, *, every: bool) -> None:
    """Freeze parameters and inputs, and compare what is left.

    Args:
        specimen, ledger: the module, and where to report.
        every: all subsets of up to 6 leaves, a sample of more; else parameters alone and inputs alone.

    Cost: 1 gradient a subset, at most 62.
    """
    s = specimen
    tried = list(_every(s)) if every else list(_coarse(s))
    wrong = 0
    for subset in tried:
        if wrong < 2:  # more would say the same
            wrong += not _agrees(s, ledger, subset)
    if tried and not wrong:
        ledger.fine("subsets of requires_grad")
    if every:
        ledger.attempt("nothing requires gradients", lambda: _check_none(s, ledger))


def _agrees(s: Specimen, ledger: Ledger, subset: frozenset[str]) -> bool:
    parameters = s.parameters()
    check = f"only {_named(subset)} require{'s' if len(subset) == 1 else ''} gradients"
    count = len(ledger.findings)
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in subset)
        ledger.attempt(check, lambda: _compare(s, ledger, check, subset))
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_()
    return len(ledger.findings) == count


def _compare(s: Specimen, ledger: Ledger, check: str, subset: frozenset[str]) -> None:
    try:
        run = s.run(only=subset)
    except RuntimeError as error:
        _note_differentiating(ledger, error)
        return
    if not ledger.close([y.detach() for y in run.outputs.values()], list(s.outputs.values())):
        ledger.wrong(check, _OTHERS)
        return
    rows = len(ledger.rows)
    if ledger.agree(check, run.pull(s.cotangents), {name: s.gradients[name] for name in run.leaves}):
        del ledger.rows[rows:]  # one row for all subsets


def _check_none(s: Specimen, ledger: Ledger) -> None:
    """Nothing requires gradients, with recording on and off: the same outputs, and nothing is written to."""
    parameters: Named = s.parameters()
    for check, when, recording in (
        ("nothing requires gradients", " where nothing requires gradients", True), ("under no_grad", " under no_grad", False),
    ):  # fmt: skip
        watch = Watch(s)
        try:
            for parameter in parameters.values():
                parameter.requires_grad_(not recording)
            with torch.set_grad_enabled(recording):
                outputs = s.outputs_of(s.module, watch.inputs)
        except RuntimeError as error:
            _note_differentiating(ledger, error)
            continue
        finally:
            for parameter in parameters.values():
                parameter.requires_grad_()
        watch.forward(ledger, when)
        ledger.agree(check, {n: y.detach() for n, y in outputs.items()}, s.outputs, words=_OTHERS)


def _note_differentiating(ledger: Ledger, error: RuntimeError) -> None:
    """Pass over a module that differentiates itself, which needs what it differentiates by to require gradients."""
    if "not require grad" not in str(error):
        raise error
    ledger.note("the module differentiates itself, so that what it differentiates by has to require gradients")


def _coarse(s: Specimen) -> Iterator[frozenset[str]]:
    parameters, inputs = frozenset(s.parameters()), frozenset(s.gradients) - frozenset(s.parameters())
    if parameters and inputs:
        yield parameters
        yield inputs


def _every(s: Specimen) -> Iterator[frozenset[str]]:
    names = list(s.gradients)
    if len(names) <= _EVERY:
        for size in range(1, len(names)):
            yield from map(frozenset, itertools.combinations(names, size))
        return
    alone = [frozenset({name}) for name in names[:_ENDS]]
    tried = [*_coarse(s), *alone, *(frozenset(names) - own for own in alone)]
    for _ in range(_SAMPLED):
        chosen = torch.rand(len(names), generator=s.generator, device=s.generator.device) < 0.5
        tried.append(frozenset(name for name, taken in zip(names, chosen.tolist(), strict=True) if taken))
    yield from (subset for subset in dict.fromkeys(tried) if subset)


def _named(subset: frozenset[str]) -> str:
    names = sorted(subset)
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
