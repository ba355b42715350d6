"""One module, several passes: mutation, repeated and interleaved calls, and cotangents and inputs of other strides."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from hesse.check.functions.case import first_line, largest
from hesse.check.layouts import expanded, layouts, slices
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.mutation import Watch
from hesse.check.modules.specimen import Named, Run, Specimen
from hesse.core.random import normal

_REPEATS = 100
_SINGLE_USE = "second time"  # torch's words for a graph whose buffers are freed


def check_first_run(specimen: Specimen, ledger: Ledger) -> Run:
    """The first run: what it changes besides computing; its outputs and gradients are the specimen's from here on.

    Cost: 1 gradient.
    """
    s = specimen
    watch = Watch(s)
    run = s.run(None, watch.inputs)
    good = watch.forward(ledger)
    if not s.cotangents:
        s.start(run)
    ledger.dtypes = s.dtypes
    cotangents = {name: u.clone() for name, u in s.cotangents.items()}
    s.outputs = {name: y.detach().clone() for name, y in run.outputs.items()}
    s.gradients = {name: g.clone() for name, g in run.pull(s.cotangents, keep=False).items()}
    if good:
        watch.backward(ledger)
    own = {f"cotangent of '{name}'" if name else "cotangent": u for name, u in s.cotangents.items()}
    kept = dict(zip(own, cotangents.values(), strict=True))
    ledger.equal("cotangent unchanged", own, kept, "changed in place by the backward pass")
    for name, u in s.cotangents.items():
        u.copy_(cotangents[name])
    ledger.equal("outputs unchanged", {name: y.detach() for name, y in run.outputs.items()}, s.outputs,
                 "changed in place by the backward pass")  # fmt: skip
    return run


def check_graph(specimen: Specimen, run: Run, ledger: Ledger) -> None:
    """Several backward passes of one graph: again, with another call in between, with other cotangents and other strides.

    Cost: 1 evaluation and up to 12 backward passes.
    """
    s = specimen
    kept = run.pull(s.cotangents)
    copies = {name: g.clone() for name, g in kept.items()}
    try:
        ledger.agree("second backward pass of one graph", kept, s.gradients)
    except RuntimeError as error:
        if _SINGLE_USE not in str(error):
            raise
        ledger.note("a graph is good for one backward pass only")
        return
    later = s.run(None, s.shrunk())
    ledger.agree("outputs after another call", {name: y.detach() for name, y in run.outputs.items()}, s.outputs,
                 words="a later call overwrote them")  # fmt: skip
    later.pull({name: 3.0 * u for name, u in s.cotangents.items()})
    ledger.equal("gradients of an earlier pass", kept, copies, "overwritten by a later pass")
    ledger.agree("another call before the backward pass", run.pull(s.cotangents), s.gradients)
    terms = _terms(s, run)
    for kind, factor in (("opposite", -1.0), ("small", 1e-3)):
        scaled = {name: factor * u for name, u in s.cotangents.items()}
        expected = {name: factor * g for name, g in s.gradients.items()}
        small = {name: factor * t for name, t in terms.items()}
        ledger.agree(f"{kind} cotangent", run.pull(scaled), expected, words="the gradient is not linear in the cotangent",
                     beside=small)  # fmt: skip
    for kind, cotangents in _cotangents(s):
        ledger.agree(f"{kind} cotangent", run.pull(cotangents), s.gradients, beside=terms)
    for given in _repeated(s.cotangents):
        plain = {name: u.contiguous() for name, u in given.items()}
        ledger.agree("expanded cotangent", run.pull(given), run.pull(plain), beside=terms)


def _terms(s: Specimen, run: Run) -> Named:
    """The size of the terms that cancel in the gradients, as far as one can tell from outside.

    It is how far they move when the cotangent is rounded otherwise, and at least a tenth of |u| |y| / |x|: the gradient of a
    normalization over two elements is a difference of such terms, and nothing but rounding.

    Cost: 1 backward pass.
    """
    units = {name: torch.finfo(u.dtype).eps for name, u in s.cotangents.items()}
    signs = {name: 1 - 2 * (torch.arange(u.numel(), device=u.device) % 2).reshape(u.shape) for name, u in s.cotangents.items()}
    moved = run.pull({name: u * (1 + 4 * units[name] * signs[name]).to(u.dtype) for name, u in s.cotangents.items()})
    unit = 4 * max(units.values())
    scale = sum(largest(u) * largest(s.outputs[name]) for name, u in s.cotangents.items())
    sizes = {name: largest(x) for name, x in {**s.parameters(), **s.call.moving}.items()}
    return {name: (g - s.gradients[name]).abs() / unit + (0.1 * scale / sizes[name] if sizes.get(name) else 0.0)
            for name, g in moved.items()}  # fmt: skip


def check_layouts(specimen: Specimen, ledger: Ledger) -> None:
    """Inputs of other strides, one after the other, give the same outputs and gradients.

    Cost: 1 gradient for each kind of strides and each input; 1 evaluation and 2 backward passes where one differs.
    """
    s, terms = specimen, None
    inputs = s.call.moving
    for name, value in inputs.items():
        for kind, other in chain(layouts(value), slices(value)) if name in s.call.dense else ():
            try:
                outputs, gradients = s.gradient(None, {**inputs, name: other})
            except Exception as error:
                ledger.note(f"{kind} input: the module raises {first_line(error)}")
                continue
            if ledger.close(list(outputs.values()), list(s.outputs.values())):
                if terms is None and not ledger.close(list(gradients.values()), [s.gradients[n] for n in gradients]):
                    terms = _terms(s, s.run())
                ledger.agree(f"{kind} input", gradients, s.gradients, beside=terms)
            elif s.draws:
                ledger.note(f"{kind} input: other outputs, as random numbers are drawn in the order of memory")
            else:
                ledger.wrong(f"{kind} input", "the outputs depend on the strides of the input", name)


def check_repeats(specimen: Specimen, ledger: Ledger) -> None:
    """A hundred passes give a hundred times the same gradient, and leave no tensors behind.

    Cost: 100 gradients.
    """
    s, worst = specimen, 0
    before = 0
    for repeat in range(_REPEATS):
        if repeat == 10:
            before = _alive()
        outputs, gradients = s.gradient()
        if not worst and not ledger.close(list(gradients.values()), [s.gradients[name] for name in gradients]):
            worst = repeat + 1
        del outputs
    if worst:
        ledger.agree(f"{worst} repeats", s.gradient()[1], s.gradients, words="the same call gave another gradient")
        ledger.wrong(f"{worst} repeats", "the gradient changes with the number of calls")
    else:
        ledger.fine(f"{_REPEATS} repeats")
    grown = _alive() - before
    if grown >= 0.9 * (_REPEATS - 10):
        ledger.wrong("memory", f"{grown} tensors stay alive after {_REPEATS - 10} calls: something keeps what each call made")
    else:
        ledger.fine("memory")


def _alive() -> int:
    gc.collect()
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


def _cotangents(s: Specimen) -> Iterator[tuple[str, Named]]:
    """The specimen's cotangents in other strides, all of a kind together."""
    own = {name: dict([*layouts(u), *slices(u)]) for name, u in s.cotangents.items()}
    for kind in dict.fromkeys(kind for kinds in own.values() for kind in kinds):
        yield kind, {name: kinds.get(kind, s.cotangents[name]) for name, kinds in own.items()}


def _repeated(own: Named) -> Iterator[Named]:
    """Cotangents whose elements are repeated by strides of zero, as that of a sum."""
    flat = {name: expanded(u) for name, u in own.items()}
    for kind in range(max(map(len, flat.values()), default=0)):
        yield {name: kinds[kind] if kind < len(kinds) else own[name] for name, kinds in flat.items()}


def check_additivity(specimen: Specimen, run: Run, ledger: Ledger) -> None:
    """The gradient for a sum of cotangents is the sum of the gradients.

    Cost: 3 backward passes.
    """
    s = specimen
    other = {name: normal(u.shape, u.dtype, u.device, s.generator) for name, u in s.cotangents.items()}
    both = run.pull({name: u + other[name] for name, u in s.cotangents.items()})
    alone = run.pull(other)
    ledger.agree("sum of cotangents", both, {name: g + alone[name] for name, g in s.gradients.items()},
                 words="the gradient is not additive in the cotangent", beside=_terms(s, run))  # fmt: skip
