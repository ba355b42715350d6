"""`grad`: gradients of functions of arbitrarily nested parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from hesse.autodiff.compiled.mode import Mode
from hesse.core.errors import StructureError
from hesse.derivatives.grad_function import GradFunction
from hesse.derivatives.grad_options import ASKED, GradOptions
from hesse.derivatives.grad_result import GradResult

__all__ = ["GradFunction", "GradResult", "grad"]


def grad(  # noqa: PLR0913 - one function with every option, each independent of the others
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    compile: Mode | None = None,
    with_forward: bool = True,
    with_gradients: bool = True,
    partial_grad: bool = False,
    stable_gradients: bool = False,
    debug_hook: Callable[[Any], Any] | None = None,
    signature: Callable[..., str | None] | None = None,
    profile: Literal["off", "summary", "detailed"] = "off",
) -> GradFunction:
    """The gradient function of `f`: ``df(params, ...)`` gives ``(grads, value, *extras)``.

    The parameters are any nesting of dicts, lists, tuples, named tuples and dataclasses of tensors and Python floats, and the
    gradients have their structure, dtypes and devices: a number for a number, ints, bools, strings and None handed back. Inside
    `f` a float is a 0-d float64 tensor, which does not raise the dtype of what it is multiplied with. The function is
    differentiated as it is executed: loops, recursion, branches on data, assignment to elements of a copy. Leaves that it does
    not use get zeros; a tensor that stands at two places has two partial derivatives. Parameters are not touched. The
    gradients may be written to.

    Args:
        f: ``f(params, *args, **kwargs)`` returns a real number, or a tuple that begins with it and goes on with anything.
        argnums: position of the argument to differentiate by, from the end if negative; a tuple of positions gives a tuple
            of gradients.
        compile: "off" runs `f` at each call; "replay" and "native" record it once for a kind of call. None: what
            `hesse.compiling` says.
        with_forward: give the values; without them ``df`` gives the gradients alone.
        with_gradients: give the gradients; without them ``df`` gives what `f` gives.
        partial_grad: ``df`` takes a cotangent like the first value as its last argument, and gives the vector-Jacobian
            product; the first value may be any tree of tensors then.
        stable_gradients: give the same tensor objects at each call (in each thread), with new values; they are resized, with
            one notice, where a shape changes.
        debug_hook: called with an event for each operation that makes a NaN or an infinity.
        signature: ``signature(*args, **kwargs)``: compiled calls with different texts share nothing; None runs directly.
        profile: what ``df.report()`` tells: "summary" of calls and times, or "detailed", by operation.

    Returns:
        The gradient function. Its results can be differentiated further where gradients are switched on and a parameter, or
        something that `f` closes over, requires grad (so that it composes with itself, `hesse.jacobian` and the like, and
        trains), and inside `torch.func` transforms. Elsewhere they are detached.

    Raises:
        StructureError: options that exclude each other; an already computed loss instead of a function.

    Cost: one gradient, and 10 to 40 microseconds; 2 to 3 gradients where the results can be differentiated further.
    """
    if not callable(f):
        found = "an already computed tensor" if hasattr(f, "grad_fn") else f"a {type(f).__name__}"
        raise StructureError(ASKED, f"{found} in the place of the function", "pass the function that computes it: grad(loss)")
    return GradFunction(
        f,
        GradOptions(
            argnums, compile, with_forward, with_gradients, partial_grad, stable_gradients, debug_hook, signature, profile
        ),
    )
