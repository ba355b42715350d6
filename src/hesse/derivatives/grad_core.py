"""One call of a gradient function, as tensors only: what direct mode runs and compiled mode records."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from hesse.autodiff.compiled.profile import Profile
from hesse.autodiff.direct import Derivative, differentiate
from hesse.autodiff.variables import requires_grad
from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.derivatives.grad_options import ASKED, GradOptions


def run_directly(
    f: Callable[..., Any], options: GradOptions, args: tuple[Any, ...], kwargs: dict[str, Any], profile: Profile | None = None
) -> Derivative:
    """Differentiate one call, the cotangent taken from the arguments, watched and timed as the options say.

    Raises:
        StructureError: no cotangent. Others as `hesse.autodiff.direct.differentiate`.

    Cost: one gradient.
    """
    cotangent = None
    if options.partial_grad:
        args, cotangent = split_cotangent(args)
    numbers = (0,) if options.argnums == 0 and args else options.positions(len(args))
    if options.debug_hook is None and profile is None:
        return differentiate(f, numbers, args, kwargs, cotangent)
    with ExitStack() as stack:
        if options.debug_hook is not None:
            from hesse.autodiff.events.watching import watching

            stack.enter_context(watching(options.debug_hook))
        if profile is not None and profile.detailed:
            from hesse.autodiff.events.timing import timed_ops

            stack.enter_context(timed_ops(profile))
        passed = None if profile is None else profile.passed
        return differentiate(f, numbers, args, kwargs, cotangent, passed=passed)


def split_cotangent(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    """The arguments, and the last one, which is the cotangent.

    Raises:
        StructureError: there are too few, or it is None.
    """
    if len(args) < 2 or args[-1] is None:
        found = f"{len(args)} positional arguments" if len(args) < 2 else "None as the last argument"
        raise StructureError(ASKED, found, "with partial_grad=True pass the cotangent last: df(params, ..., cotangent)")
    return args[:-1], args[-1]


class Core:
    """What compiled mode records of a gradient function: its gradients and outputs, all tensors.

    Calling it returns ``(grads, outputs, attached)``, the gradients in the structure of the parameters, with tensors for
    Python numbers; they are None for functions that give values alone.
    """

    _state_fields_ = ("_f", "_options")

    def __init__(self, f: Callable[..., Any], options: GradOptions) -> None:
        self._f, self._options = f, options

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tree, Any, bool]:
        """Run and differentiate."""
        if not self._options.with_gradients:
            outputs = self._f(*args, **kwargs)
            return None, outputs, requires_grad(outputs)
        done = run_directly(self._f, self._options, args, kwargs)
        grads = self._options.placed(done.variables.restore(done.grads))
        return grads, done.outputs if self._options.with_forward else None, done.attached
