"""What `hesse check TARGET` checks: a module, a function, an operator, or a model and its loss on some samples of a batch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hesse.autodiff.functional import buffers_preserved
from hesse.autodiff.model import sample_count, select_rows, split_batch
from hesse.check import CheckReport, check_derivatives, check_module, check_operator
from hesse.check.replica import call_model
from hesse.core import tree
from hesse.core.errors import HesseError, StructureError, TargetError
from hesse.core.progress import track
from hesse.core.random import make_generator
from hesse.operators import LinearOperator
from hesse.report.page import made_with
from hesse.report.reproducing import filled, from_target, of_loss, of_pair
from hesse.report.target import Target, arguments, batches_of, check_triple, describe
from hesse.report.user_code import perhaps_user_code, user_code

Level = Literal["quick", "full"]
_ASKED = "`hesse check` takes a TARGET that returns something with a derivative."
_REMEDY = "return (module, inputs), (function, point), (model, loss, data), or an operator"
_SAMPLES = 4  # of a batch, beyond which a check finds nothing more


@dataclass(frozen=True)
class Part:
    """One thing that was checked.

    Attributes:
        title: what it is.
        question: what was asked, in a line.
        report: what was found; None where hesse refuses.
        error: the refusal.
        seconds: what it took.
        code: a program that shows the first finding, TARGET filled in; empty without one.
    """

    title: str
    question: str
    report: CheckReport | None
    error: HesseError | None
    seconds: float
    code: str = ""

    @property
    def verdict(self) -> str:
        """Of the report, or "refused"."""
        return "refused" if self.report is None else self.report.verdict


@dataclass(frozen=True)
class Checked:
    """Everything that a TARGET gave to check.

    Attributes:
        about: target, level, seed, versions.
        parts: in the order in which they were checked.
    """

    about: dict[str, Any]
    parts: tuple[Part, ...]

    @property
    def ok(self) -> bool:
        """Whether every part is confirmed."""
        return all(part.verdict == "ok" for part in self.parts)


@dataclass(frozen=True)
class _Task:
    """A check to come; `source` defines what is checked, by ``target``, in the program that shows a finding."""

    title: str
    question: str
    source: str
    run: Callable[[Level, torch.Generator], CheckReport]


def check_target(name: str, returned: Any, *, level: Level = "quick", seed: int = 0) -> Checked:
    """Check what a TARGET returned.

    Args:
        name: TARGET as it was written.
        returned: ``(module, inputs)``, ``(function, point)``, ``(model, loss, data)``, or a `LinearOperator`.
        level: "quick" or "full".
        seed: of directions and cotangents.

    Raises:
        TargetError: something else was returned.
        UserCodeError: the user's code raised.

    Cost: that of `check_module`, `check_derivatives` or `check_operator`.
    """
    tasks = _tasks(name, returned)
    parts = tuple(_run(name, task, level, seed) for task in track(tasks, "checks"))
    return Checked({"target": name, "level": level, "seed": seed, **made_with()}, parts)


def _run(name: str, task: _Task, level: Level, seed: int) -> Part:
    began = time.perf_counter()
    report, refusal = None, None
    try:
        with perhaps_user_code(f"checking the {task.title}"):
            report = task.run(level, make_generator(seed))
    except HesseError as error:
        refusal = error
    seconds = time.perf_counter() - began
    code = filled(report.reproducer, f"{from_target(name, seed)}\n{task.source}") if report and report.reproducer else ""
    return Part(task.title, task.question, report, refusal, seconds, code)


def _tasks(name: str, returned: Any) -> list[_Task]:
    if isinstance(returned, LinearOperator):
        return [_Task("operator", "Does the operator keep the laws of linear operators, and are its tags true?", "A = target()",
                      lambda level, g: check_operator(returned, level=level, generator=g))]  # fmt: skip
    if isinstance(returned, (tuple, list)) and len(returned) == 3:
        return _of_model(check_triple(name, returned))
    if isinstance(returned, (tuple, list)) and len(returned) == 2 and callable(returned[0]):
        return [_of_call(*returned)]
    raise TargetError(_ASKED, f"{name} returned {describe(returned)}", _REMEDY)


def _of_call(f: Any, x: Any) -> _Task:
    if isinstance(f, type):
        raise TargetError(_ASKED, f"the class {f.__name__}", f"return {f.__name__}(...), not the class")
    args, kwargs = arguments(x) if isinstance(f, nn.Module) else ((x,), {})
    kept = buffers_preserved(f if isinstance(f, nn.Module) else None)
    with user_code(f"calling {_name(f)}"), torch.no_grad(), torch.random.fork_rng(), kept:
        f(*args, **kwargs)
    if isinstance(f, nn.Module):
        return _module_task(type(f).__name__, f, args, kwargs)
    question = "Are the first and second derivatives of the function right, however they are used?"
    return _function_task(_name(f), question, "f = target()[0]", f, x)


def _name(f: Any) -> str:
    return getattr(f, "__name__", type(f).__name__)


def _function_task(title: str, question: str, source: str, f: Callable[[Any], Any], x: Any) -> _Task:
    return _Task(title, question, source, lambda level, g: check_derivatives(f, x, level=level, generator=g))


def _module_task(title: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Task:
    question = "Are the gradients of parameters and inputs right, and does the module behave as a module should?"
    source = "module = target()[0]"
    return _Task(title, question, source, lambda level, g: check_module(module, *args, level=level, generator=g, **kwargs))


def _of_model(target: Target) -> list[_Task]:
    """The model on some samples of the first batch, and the loss as a function of the model's output."""
    batch = split_batch(next(batches_of(target.data, _ASKED)), _ASKED)
    count = sample_count(*batch, _ASKED)
    rows = torch.linspace(0, count - 1, min(_SAMPLES, count)).round().long()
    inputs, targets = (select_rows(part, rows) for part in batch)
    args, kwargs = arguments(inputs)
    if isinstance(target.model, nn.Module):
        tasks = [_module_task("model", target.model, args, kwargs)]
    else:
        f, params = target.model
        question = "Are the derivatives by the parameters right?"
        tasks = [_function_task("model", question, of_pair(args, kwargs), lambda p: f(p, *args, **kwargs), params)]
    with user_code("calling the model"), torch.no_grad():
        output = call_model(copy.deepcopy(target.model), inputs)
    question = "Are the derivatives of the loss by the model's output right?"
    tasks.append(_function_task("loss", question, of_loss(targets), _loss_of(target.loss, targets, output), output))
    return tasks


def _loss_of(loss: Any, targets: Any, output: Any) -> Callable[[Any], Any]:
    """The loss of outputs for fixed targets, which go with outputs of these shapes only."""
    shapes = _shapes(output)

    def f(output: Any) -> Any:
        if _shapes(output) != shapes:
            found = f"outputs of shapes {_shapes(output)}"
            raise StructureError("The targets stay as they are.", found, f"pass outputs of shapes {shapes}")
        return loss(output, targets)

    return f


def _shapes(output: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in tree.leaves(output) if isinstance(leaf, torch.Tensor)]
