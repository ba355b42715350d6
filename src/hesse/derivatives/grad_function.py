"""`GradFunction`: what `grad` makes of a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.compiled.mode import CompileNotice, Mode, default_mode
from hesse.autodiff.compiled.profile import Profile
from hesse.autodiff.direct import ASKED as DIFFERENTIATES
from hesse.autodiff.direct import differentiate, is_in_plain_mode
from hesse.autodiff.source_lines import warn_user
from hesse.autodiff.stable import StableGradients
from hesse.autodiff.variables import LINKED, OTHERS, Variables, requires_grad, survey
from hesse.core import tree
from hesse.core.errors import UnsupportedError
from hesse.core.tree import Tree
from hesse.derivatives.grad_core import Core, run_directly, split_cotangent
from hesse.derivatives.grad_options import ASKED, GradOptions
from hesse.derivatives.grad_result import GradResult

_FIRST = (0,)


class GradFunction:
    """A gradient function, made by `hesse.grad`. It pickles when the function does.

    Args:
        f: the function.
        options: what `grad` was asked for.

    Cost: a call is one gradient of `f`, and in direct mode 10 to 40 microseconds more; compiled, see `hesse.grad`.
    """

    _state_fields_ = ("_f", "_options")

    def __init__(self, f: Callable[..., Any], options: GradOptions) -> None:
        self._f, self._options = f, options
        self._stable = StableGradients(ASKED) if options.stable_gradients else None
        self._profile = None if options.profile == "off" else Profile(options.profile)
        self._compiled: dict[Any, Any] = {}
        self._noticed = False
        self._hangs = False  # whether results were seen to hang on what the function closes over
        self._is_simple = options == GradOptions(compile=options.compile)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The gradients and the values at these arguments.

        Returns:
            ``(grads, value, *extras)``, a `GradResult`; the gradients alone, or the values alone, if the options say so.

        Raises:
            StructureError: no parameters, parameters changed in place, a cotangent or stable gradients that do not fit.
            LeafError: a leaf of integers or of an unknown type. DeviceError: leaves on several devices.
            NonScalarError: more than one number and no cotangent. DetachedError: the value was cut off from the parameters,
            with the call that cut it. UnsupportedError: inference mode.
        """
        mode = self._options.compile or default_mode()
        if mode != "off" and self._may_compile(found := survey(args), kwargs):
            grads, outputs, attached = self._compiled_for(mode, args)(args, kwargs)
            if attached and not self._hangs:
                self._hangs = True
                self._notice("what it closes over requires grad")
            if not attached or requires_grad((grads, outputs)):  # a run that was just recorded is still attached
                if self._is_simple and not found & OTHERS:
                    return GradResult((grads, *outputs) if isinstance(outputs, tuple) else (grads, outputs))
                return self._from_compiled(grads, outputs, args, attached)
        if self._is_simple and args:
            done = differentiate(self._f, _FIRST, args, kwargs)
            grads, outputs = done.variables.like(done.grads, done.attached), done.outputs
            return GradResult((grads, *outputs) if isinstance(outputs, tuple) else (grads, outputs))
        if not self._options.with_gradients:
            return self._f(*args, **kwargs)
        done = run_directly(self._f, self._options, args, kwargs, self._profile)
        return self._finish(done.variables, done.grads, done.outputs, done.attached)

    def _notice(self, cause: str) -> None:
        """Say once that calls run directly, so that their results can be differentiated."""
        if not self._noticed and not torch._C._len_torch_dispatch_stack():
            self._noticed = True
            remedy = "call it under torch.no_grad() if that is not wanted"
            name = getattr(self._f, "__qualname__", type(self._f).__name__)
            warn_user(f"{name} runs directly: {cause}, so that the result has to be differentiable; {remedy}", CompileNotice)

    def _from_compiled(self, grads: Tree, outputs: Any, args: tuple[Any, ...], attached: bool) -> Any:
        if grads is None:
            return outputs
        numbers = self._positions(args)
        variables = Variables(args[numbers[0]] if len(numbers) == 1 else {i: args[i] for i in numbers}, DIFFERENTIATES)
        return self._finish(variables, tree.leaves(grads), outputs, attached)

    def _finish(self, variables: Variables, grads: Sequence[Tensor], outputs: Any, attached: bool) -> Any:
        if self._stable is not None:
            if attached:
                remedy = "call it under torch.no_grad, detach the parameters, or leave out stable_gradients"
                raise UnsupportedError(ASKED, "stable gradients that are to be differentiated further", remedy)
            grads = self._stable.take(variables, grads)
        found = self._options.placed(variables.like(grads, attached))
        if not self._options.with_forward:
            return found
        return GradResult((found, *outputs) if isinstance(outputs, tuple) else (found, outputs))

    def _positions(self, args: tuple[Any, ...]) -> tuple[int, ...]:
        given = split_cotangent(args)[0] if self._options.partial_grad else args
        return self._options.positions(len(given))

    def _may_compile(self, found: int, kwargs: dict[str, Any]) -> bool:
        if self._options.debug_hook is not None or not is_in_plain_mode():
            return False
        if not torch.is_grad_enabled():
            return True
        linked = bool(found & LINKED or (kwargs and requires_grad(kwargs)))
        if linked:
            self._notice("an argument requires grad")
        return not (self._hangs or linked)

    def _compiled_for(self, mode: Mode, args: tuple[Any, ...]) -> Any:
        key = mode, len(args), torch.is_grad_enabled()
        found = self._compiled.get(key)
        if found is None:
            from hesse.autodiff.compiled.function import CompiledFunction

            made = CompiledFunction(
                Core(self._f, self._options),
                self._f,
                mode="replay" if mode == "replay" else "native",
                variables=self._positions(args) if self._options.with_gradients else (),
                signature=self._options.signature,
                profile=self._profile,
            )
            found = self._compiled.setdefault(key, made)
        return found

    def report(self) -> Any:
        """What calls were spent on so far: a `ProfileReport`, which prints as a table.

        Raises:
            UnsupportedError: made with profile="off".
        """
        if self._profile is None:
            remedy = 'pass profile="summary" or profile="detailed"'
            raise UnsupportedError(ASKED, "a report of a function made without a profile", remedy)
        return self._profile.report()

    def code(self, *args: Any, **kwargs: Any) -> str:
        """The code that runs for a call with these arguments; with compile="off", what "replay" would run.

        Raises:
            UnsupportedError: such a call runs directly, with the reason.

        Cost: a call; one more where it is not recorded yet.
        """
        return self._path(args, kwargs).code

    def graph(self, *args: Any, **kwargs: Any) -> Any:
        """The operations of a call with these arguments, a `ProgramGraph` to look at: `to_dot()`, `to_svg()`.

        Raises:
            UnsupportedError: such a call runs directly, with the reason.

        Cost: a call; one more where it is not recorded yet.
        """
        from hesse.autodiff.graphs.compiled import Kind, ProgramGraph

        path = self._path(args, kwargs)
        gradients = path.result_count(0)
        roles: list[tuple[str, Kind]] = [(f"read {i}", "answer") for i in range(len(path.trace.reads))]
        roles.extend((f"gradient by {name}", "gradient") for name in path.input_names[:gradients])
        roles.extend((f"value {i}", "answer") for i in range(len(path.trace.results) - gradients))
        return ProgramGraph(path.trace.graph, inputs=path.input_names, outputs=roles)

    def _path(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from hesse.autodiff.compiled.unrecordable import Unrecordable

        mode = self._options.compile or default_mode()
        try:
            with torch.no_grad():
                return self._compiled_for("replay" if mode == "off" else mode, args).path(args, kwargs)
        except Unrecordable as error:
            remedy = "mend what cannot be recorded, or use the function in direct mode"
            raise UnsupportedError(ASKED, f"a call that cannot be compiled: {error.reason}", remedy) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return GradFunction, (self._f, self._options)

    def __repr__(self) -> str:
        name = getattr(self._f, "__qualname__", None) or repr(self._f)
        return f"grad({name}, {self._options})"
