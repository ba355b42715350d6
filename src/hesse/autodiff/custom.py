"""`custom_vjp`: a user's own derivative rules for a function."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, overload

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from hesse.autodiff.custom_call import bind
from hesse.autodiff.custom_function import make_function
from hesse.autodiff.custom_rules import Rule, Rules
from hesse.core import tree
from hesse.core.errors import StructureError

P = ParamSpec("P")
R = TypeVar("R")
AnyRule = TypeVar("AnyRule", bound=Rule)


class CustomFunction(Generic[P, R]):
    """A function with derivative rules of its own; made by `custom_vjp`.

    Args:
        function: of tensors, trees of tensors and constants, to a tensor or a tree of tensors.
        once_differentiable: whether the rules are not to be differentiated themselves.
        nondiff_argnames: arguments that are constants to differentiation.
    """

    def __init__(self, function: Callable[P, R], once_differentiable: bool, nondiff_argnames: tuple[str, ...]) -> None:
        functools.update_wrapper(self, function)
        self.__qualname__: str
        self._function, self._signature = function, inspect.signature(function)
        self._rules = Rules(getattr(function, "__name__", type(function).__name__), once_differentiable=once_differentiable)
        self._nondiff = nondiff_argnames
        self._apply = make_function(self._rules).apply
        unknown = [name for name in nondiff_argnames if name not in self._signature.parameters]
        if unknown:
            raise StructureError(
                f"nondiff_argnames names arguments of {self._rules.name}.",
                f"'{unknown[0]}', which is none of {', '.join(self._signature.parameters)}",
                "name parameters of the function",
            )

    def vjp(self, rule: AnyRule) -> AnyRule:
        """Register the gradient rule; a decorator.

        Args:
            rule: ``rule(cotangent, answer, *args)``, called with the arguments of the function (keyword-only ones by
                keyword), returns one gradient for each argument of the signature, None where there is none; where the
                function has one argument, its gradient alone. The cotangent has the structure of the answer. Written in
                differentiable torch functions of all it is given, it is right to any order.

        Returns:
            The rule.
        """
        self._rules.vjp = rule
        return rule

    def defvjps(self, *rules: Rule | None) -> None:
        """Register the gradient argument by argument; only the rules of arguments that need a gradient run.

        Args:
            rules: in the order of the signature, ``rule(cotangent, answer, *args)`` to the gradient of that argument, or
                None for an argument without one.

        Raises:
            StructureError: more rules than arguments, or a function of ``*args``.
        """
        kinds = {p.kind for p in self._signature.parameters.values()}
        variadic = bool(kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD})
        if variadic or len(rules) > len(self._signature.parameters):
            raise StructureError(
                f"{self._rules.name}.defvjps takes one rule for each argument of {self._signature}.",
                "a variable number of arguments" if variadic else f"{len(rules)} rules",
                f"give one rule for all arguments: @{self._rules.name}.vjp",
            )
        self._rules.vjps = {index: rule for index, rule in enumerate(rules) if rule is not None}

    def jvp(self, rule: AnyRule) -> AnyRule:
        """Register the forward-mode rule; a decorator. Without one, forward mode is derived from the gradient's rule.

        Args:
            rule: ``rule(tangents, answer, *args)`` to the tangent of the answer, in its structure. Tangents: a tuple with one
                for each argument (where the function has one argument, its tangent alone), zeros for tensors that do not
                move, and constants themselves.

        Returns:
            The rule.
        """
        self._rules.jvp = rule
        return rule

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._nondiff:
            args, kwargs = self._held(args, kwargs)  # pyright: ignore[reportAssignmentType]
        call = bind(self._function, self._signature, args, kwargs)
        call.followed, call.transformed = torch.is_grad_enabled(), peek_interpreter_stack() is not None
        tensors = call.tensors
        call.tensors = []  # the graph keeps the call, and keeps tensors by itself
        outputs = self._apply(call, *tensors)  # which finds out how they are put together
        return call.output.unpack(outputs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def _held(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = self._signature.bind(*args, **kwargs)
        for name in self._nondiff:
            if name in bound.arguments:
                bound.arguments[name] = tree.map_tree(_detached, bound.arguments[name])
        return bound.args, bound.kwargs

    def __reduce__(self) -> str:
        return self.__qualname__  # pickled and copied by reference, like the function that it stands for

    def __repr__(self) -> str:
        return f"custom_vjp({self._rules.name})"


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


@overload
def custom_vjp(function: Callable[P, R], /) -> CustomFunction[P, R]: ...


@overload
def custom_vjp(
    *, once_differentiable: bool = False, nondiff_argnames: tuple[str, ...] = ()
) -> Callable[[Callable[P, R]], CustomFunction[P, R]]: ...


def custom_vjp(
    function: Callable[..., Any] | None = None, /, *, once_differentiable: bool = False, nondiff_argnames: tuple[str, ...] = ()
) -> Any:
    """Give a function derivative rules of its own; a decorator.

    Rules are registered on the result: `vjp` (one rule for all arguments), `defvjps` (one for each) and, optionally, `jvp`.
    The function then works in plain autograd to any order, under `torch.func` and `vmap`, and in forward mode. Gradients are
    summed to the shape of an argument that was broadcast. Integer and boolean tensors, Python numbers and other values are
    constants. An intermediate result that a rule needs is returned as a further output, whose cotangent the rule uses too.
    Inside the function the arguments require no gradient, so that it may hand them to NumPy. A method can be decorated too;
    `self` is then the first argument of its rules, a constant.

    Args:
        function: of tensors, trees of tensors and constants, to a tensor or a tree of tensors; it does not change its
            arguments and reads no other tensor that requires gradients. Its operations are not recorded for differentiation.
        once_differentiable: the rules are not written in differentiable functions: a second derivative is refused, and
            forward mode too unless it has a rule.
        nondiff_argnames: names of arguments that are constants to differentiation, tensors among them.

    Returns:
        A `CustomFunction` of the same signature.

    Raises:
        LeafError: at the call, a tensor that requires gradients is read, and is no argument.
        NoRuleError: at differentiation, a gradient that no rule gives.
        StructureError, LeafError: at differentiation, gradients of the wrong number, shape or dtype.
        UnsupportedError: at differentiation, a second derivative of a function that is once differentiable.

    Cost: one call of the function forward, one of the rule backward; forward mode without a rule of its own, one call of the
        gradient's rule and its derivative.
    """
    if function is None:
        return lambda given: CustomFunction(given, once_differentiable, nondiff_argnames)
    return CustomFunction(function, once_differentiable, nondiff_argnames)
