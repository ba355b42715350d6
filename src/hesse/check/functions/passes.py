"""Backward passes in every order and number: the gradient has to stay the same, and all that it is computed from."""

from __future__ import annotations

import torch

from hesse.check.functions.case import Case, differentiates
from hesse.check.functions.subject import EachTimeAnew, Graph, Leaves

_REPEATS = 100


def repeated(case: Case) -> None:
    """A second backward pass of the same graph; the first one's results stay as they were."""
    home = case.home
    kept = [g.clone() for g in home.gradient]

    def again() -> tuple[Leaves, Leaves]:
        try:
            return home.graph.pull(home.cotangents), kept
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            case.note("a graph is good for one backward pass only")
            home.graph = EachTimeAnew(case.subject, home.point)
            return kept, kept

    if not case.agree("second backward pass of one graph", again, words="only the second time", exact=True):
        home.graph = EachTimeAnew(case.subject, home.point)
    case.agree(
        "gradient after a later pass",
        lambda: (home.gradient, kept),
        words="a gradient that was handed out changes later",
        exact=True,
    )
    home.gradient = kept


def unchanged(case: Case) -> None:
    """Point and cotangent after a forward and a backward pass. Cost: 1 evaluation."""
    home = case.home
    point, cotangents = [x.clone() for x in home.point], [u.clone() for u in home.cotangents]

    def kept() -> tuple[Leaves, Leaves]:
        graph = case.subject.record(point)
        after = [x.clone() for x in point]
        graph.raw_pull(cotangents)
        case.same("inputs unchanged by the forward pass", after, home.point, words="the forward pass writes to its input")
        return point, home.point

    case.agree("inputs unchanged", kept, words="the backward pass writes to its input", exact=True)
    case.same("cotangents unchanged", cotangents, home.cotangents, words="the backward pass writes to its cotangent")


def interleaved(case: Case) -> None:
    """Another call, and its backward pass, before this one's. Cost: 1 evaluation."""
    home = case.home

    def after() -> tuple[Leaves, Leaves]:
        case.beside()
        return home.graph.pull(home.cotangents), home.gradient

    case.agree("another call before the backward pass", after, words="only after another call", exact=True)


def used_twice(case: Case) -> None:
    """Two calls on the same leaves: gradients that add up. Cost: 1 evaluation."""
    home = case.home

    def twice() -> tuple[Leaves, Leaves]:
        graph = home.graph
        both = Graph(graph.own, [*graph.outputs, *case.subject.continued(graph.own)], graph.inside)
        found = both.pull([*home.cotangents, *home.cotangents])
        return found, [2 * g for g in home.gradient]

    case.agree("accumulation over two uses", twice, words="only where a leaf is used twice")


def accumulated(case: Case) -> None:
    """Two graphs whose gradients are added to `.grad`, which holds something already. Cost: 2 evaluations."""
    home = case.home

    def added() -> tuple[Leaves, Leaves]:
        first = case.subject.record(home.point)
        for leaf in first.own:
            leaf.grad = torch.ones_like(leaf)
        first.accumulate(home.cotangents)
        own = first.own
        Graph(own, case.subject.continued(own), first.inside).accumulate(home.cotangents)
        found = [torch.ones_like(x) if x.grad is None else x.grad.detach() for x in own]
        return found, [1 + 2 * g for g in home.gradient]

    case.agree("accumulation into .grad", added, words="only where .grad accumulates")


def refilled(case: Case) -> None:
    """The same tensors with other contents, as in a training loop: nothing of the first call remains. Cost: 2 evaluations."""
    home, beside = case.home, case.beside()
    if beside is home:
        return

    def other() -> tuple[Leaves, Leaves]:
        tensors = [x.clone() for x in home.point]
        case.subject.record(tensors).pull(home.cotangents)
        for tensor, value in zip(tensors, beside.point, strict=True):
            tensor.copy_(value)
        graph = case.subject.record(tensors)
        case.same("values of the same tensors with other contents", [y.detach() for y in graph.outputs], beside.outputs,
                  words="something of an earlier call is used again", by_leaf=False)  # fmt: skip
        return graph.pull(home.cotangents), beside.gradient

    case.agree("the same tensors with other contents", other, words="something of an earlier call is used again")


def without_gradients(case: Case) -> None:
    """The values while nothing is recorded. Cost: 1 evaluation."""

    def values() -> tuple[Leaves, Leaves]:
        try:
            with torch.no_grad():
                found = case.subject.outputs(case.home.point)
        except RuntimeError as error:
            if not differentiates(error):
                raise
            case.note("recording off: not compared, as the function differentiates itself")
            return [], []
        case.same("values without recording", found, case.home.outputs, words="only while gradients are off", by_leaf=False)
        return [], []

    case.agree("recording off", values)


def many_times(case: Case) -> None:
    """A hundred calls and passes, which caches and counters may not survive. Cost: 100 evaluations."""
    home = case.home
    for number in range(min(_REPEATS, case.subject.budget.left)):
        found = case.subject.record(home.point).pull(home.cotangents)
        if not case.close(found, home.gradient, by_leaf=False):
            case.same("repeated calls", found, home.gradient, words=f"from call {number + 2} on", by_leaf=False)
            return
    case.row("repeated calls", "", _REPEATS, 0.0, 0.0, "ok")
