"""A guard around a training step: one check after each step and, where it fails, a replay that names the cause."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from hesse.autodiff.events.records import all_finite, checkable
from hesse.core.errors import NonFiniteError
from hesse.debug.nonfinite import find_nonfinite
from hesse.debug.nonfinite_report import NonfiniteReport
from hesse.debug.snapshot import Snapshot, state_tensors

_SHARE = 0.01


class NonFiniteStepError(NonFiniteError):
    """A training step gave NaN or infinity; `report` names the cause. The step was undone."""

    def __init__(self, asked: str, found: str = "", remedy: str = "", report: NonfiniteReport | None = None) -> None:
        super().__init__(asked, found, remedy)
        self.report = report


class Sentinel:
    """Guards a training step at almost no cost: call it in place of the step.

    After each step the returned values and all parameters and buffers that were finite at first are checked by one sum each
    (and gradients, without optimizers). Where something is not finite, or the step raises after something was not, the state is
    put back to the latest copy (parameters, buffers, gradients, optimizers, random numbers), the steps since are run again, the
    failing one is watched op by op, and then it is undone: parameters and optimizers are as they were before it, so that
    training can go on with another batch, or be saved. Steps must be determined by their arguments and that state: draw the
    batch outside and pass it in. Under `torch.distributed` all processes must guard and find the same.

    Args:
        step: the training step; what it returns is returned, and checked.
        modules: the modules that it trains, and tensors that it trains without one.
        optimizers: the optimizers that it uses.
        stateful: schedulers, gradient scalers and others with `state_dict` and `load_state_dict`.
        hook: called with the report instead of raising; a step that raised then returns None.
        window: the most steps from one copy of the state to the next; the arguments of so many calls are kept. Copies are made
            as often as they cost one hundredth of the time.

    Attributes:
        steps: how many steps ended well.
        report: of the last step that did not; None before.

    Cost: a sum over each parameter, buffer and returned value, and one hundredth for copies: 1.02 to 1.05 steps where a step
        takes over 10 ms. A failure costs at most `window` further steps, one of them watched. Memory: a copy of the parameters,
        their gradients and the optimizer's state, and the kept arguments.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        modules: nn.Module | Iterable[nn.Module | Tensor],
        optimizers: Optimizer | Iterable[Optimizer] = (),
        *,
        stateful: Iterable[Any] = (),
        hook: Callable[[NonfiniteReport], Any] | None = None,
        window: int = 32,
    ) -> None:
        modules = [modules] if isinstance(modules, nn.Module) else list(modules)
        optimizers = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        self.steps, self.report = 0, None
        self._step, self._hook, self._window = step, hook, max(1, window)
        tensors = state_tensors(modules, optimizers)
        self._state, self._before = (Snapshot(tensors.values(), optimizers, stateful) for _ in range(2))
        self._tensors = {name: value for name, value in tensors.items() if checkable(value) and all_finite(value.detach())}
        self._gradients = not optimizers
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._interval, self._seconds, self._taken = 0, 0.0, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step with these arguments and check it.

        Args:
            *args: the step's.
            **kwargs: the step's.

        Returns:
            What the step returns, also where it was undone.

        Raises:
            NonFiniteStepError: the step gave NaN or infinity, and there is no hook.
            Exception: what the step raises, where nothing was wrong before.

        Cost: see the class.
        """
        if len(self._calls) >= self._interval:
            started = time.perf_counter()
            self._state.take()
            self._taken = time.perf_counter() - started
            self._calls.clear()
        self._calls.append((args, kwargs))
        started = time.perf_counter()
        try:
            returned = self._step(*args, **kwargs)
        except Exception as error:
            self._explain(f"something before {type(error).__name__}", error)
            return None
        bad = self._bad(returned)
        self._plan(time.perf_counter() - started)
        if bad:
            self._explain(bad)
        else:
            self.steps += 1
        return returned

    def _plan(self, seconds: float) -> None:
        """Copy so rarely that the copies take a hundredth of the time."""
        self._seconds = seconds if not self._seconds else min(self._seconds, seconds)
        self._interval = min(self._window, max(1, math.ceil(self._taken / (_SHARE * self._seconds))))

    def _bad(self, returned: Any) -> str:
        """The first result that is not finite, in words; empty where all are."""
        for leaf in tree_leaves(returned):
            if isinstance(leaf, Tensor) and checkable(leaf) and not all_finite(leaf):
                return "a returned value"
            if isinstance(leaf, float) and not math.isfinite(leaf):
                return f"a returned value of {leaf}"
        with torch.no_grad():
            for name, value in self._tensors.items():
                if not all_finite(value):
                    return f"{name} after the step"
                grad = value.grad if self._gradients and value.is_leaf else None
                if grad is not None and checkable(grad) and not all_finite(grad):
                    return f"the gradient of {name}"
        return ""

    def _explain(self, bad: str, error: Exception | None = None) -> None:
        """Run the steps since the last copy again, the failing one watched, undo that one, and tell."""
        *earlier, (args, kwargs) = self._calls
        self._state.restore()
        for before in earlier:
            self._step(*before[0], **before[1])
        self._before.take()
        report = find_nonfinite(lambda: self._step(*args, **kwargs))
        self._before.restore()
        self._calls.clear()
        self._interval = 0
        if error is not None and not report.found:
            raise error
        self.report = report
        if self._hook is not None:
            self._hook(report)
            return
        found = f"{bad} is not finite"
        found += f"; {report}" if report.found else "; the replay of the step did not show it again"
        remedy = "mend that line; the step was undone, so the parameters can be saved, or training go on with another batch"
        if not report.found:
            remedy = "make the step depend on its arguments and on the given modules and optimizers alone (pass the batch in)"
        asked = f"Step {self.steps + 1} of a guarded training run was to be finite."
        raise NonFiniteStepError(asked, found, remedy, report) from error
