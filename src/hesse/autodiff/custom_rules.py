"""What the rules of a custom derivative return, checked and brought to the shapes of the arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.custom_call import Call
from hesse.core import tree
from hesse.core.errors import LeafError, NoRuleError, StructureError, UnsupportedError

Rule = Callable[..., Any]


@dataclass
class Rules:
    """The rules of one function.

    Attributes:
        name: of the function.
        vjp: ``(cotangent, answer, *args)`` to one gradient an argument.
        vjps: rules of single arguments, by the argument's number: ``(cotangent, answer, *args)`` to its gradient.
        jvp: ``(tangents, answer, *args)`` to the tangent of the answer.
        once_differentiable: whether the rules are not to be differentiated themselves.
    """

    name: str
    vjp: Rule | None = None
    vjps: dict[int, Rule] = field(default_factory=dict)
    jvp: Rule | None = None
    once_differentiable: bool = False


def pull_back(
    rules: Rules,
    call: Call,
    tensors: Sequence[Tensor],
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients with respect to the tensors of a call, None where none is needed."""
    first = (call.output.unpack(cotangents), call.output.unpack(outputs))
    wanted = [index for index, span in call.spans() if any(needed[span])]
    given: dict[int, Any] = {}
    if rules.vjp is not None:
        everything = _one_per_argument(rules, call, call.pass_to(rules.vjp, first, tensors))
        given = {index: everything[index] for index in wanted}
    else:
        for index in wanted:
            if index in rules.vjps:
                given[index] = call.pass_to(rules.vjps[index], first, tensors)
    result: list[Tensor | None] = []
    for index, span in call.spans():
        if index not in wanted:
            result += [None] * (span.stop - span.start)
            continue
        named = _by_path(rules, call, index, given.get(index))
        for path, tensor, need in zip(call.packings[index].paths, tensors[span], needed[span], strict=True):
            where = call.label(index) + (f" at '{path}'" if path else "")
            result.append(_fitted(rules.name, where, named.get(path), tensor) if need else None)
    return result


def _one_per_argument(rules: Rules, call: Call, given: Any) -> Sequence[Any]:
    count = len(call.names)
    if count == 1 and not (isinstance(given, (tuple, list)) and len(given) == 1 and call.packings[0].structure is None):
        return [given]
    if not isinstance(given, (tuple, list)) or len(given) != count:
        found = f"{len(given)} gradients" if isinstance(given, (tuple, list)) else type(given).__name__
        raise StructureError(
            f"The rule of {rules.name} returns one gradient for each of its {count} arguments ({', '.join(call.names)}).",
            found,
            "return a tuple in the order of the arguments, with None for an argument that has no gradient",
        )
    return given


def _by_path(rules: Rules, call: Call, index: int, gradient: Any) -> dict[str, Any]:
    if gradient is None:
        return {}
    paths = call.packings[index].paths
    named = {"": gradient} if call.packings[index].structure is None else dict(tree.named_leaves(gradient))
    unknown = [path for path in named if path not in paths]
    if unknown:
        raise StructureError(
            f"The gradient of {rules.name} for {call.label(index)} has the structure of the argument.",
            f"a leaf at '{unknown[0]}', where the argument has {', '.join(repr(path) for path in paths)}",
            "return the same nesting, with None for a leaf that has no gradient",
        )
    return named


def _fitted(name: str, where: str, gradient: Any, tensor: Tensor) -> Tensor:
    asked = f"A gradient of {name} for {where} was asked for."
    if gradient is None:
        raise NoRuleError(
            asked,
            f"missing gradient for {where} of {name}: no rule, or a rule that returned None",
            "give the rule, or name the argument in nondiff_argnames if its gradient is zero",
        )
    if not isinstance(gradient, Tensor):
        raise LeafError(asked, f"the rule returned {type(gradient).__name__}", "return a tensor of the argument's shape")
    if not (gradient.is_complex() or gradient.is_floating_point()) or (gradient.is_complex() and not tensor.is_complex()):
        raise LeafError(asked, f"a gradient of {gradient.dtype}, where the argument has {tensor.dtype}",
                        f"return {tensor.dtype} (of a complex gradient of a real argument, the real part)")  # fmt: skip
    if gradient.shape != tensor.shape:
        gradient = _summed(asked, gradient, tensor)
    return gradient if gradient.dtype == tensor.dtype else gradient.to(tensor.dtype)


def _summed(asked: str, gradient: Tensor, tensor: Tensor) -> Tensor:
    """The gradient summed over the axes along which the argument was broadcast."""
    have, want = tuple(gradient.shape), tuple(tensor.shape)
    extra = len(have) - len(want)
    if extra < 0 or any(w not in (1, h) for w, h in zip(want, have[extra:], strict=True)):
        raise StructureError(asked, f"a gradient of shape {list(have)}, where the argument has shape {list(want)}",
                             "return the shape of the argument, or one that the argument broadcasts to")  # fmt: skip
    return gradient.sum_to_size(want)


def push_forward(
    rules: Rules, call: Call, tensors: Sequence[Tensor], outputs: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The tangents of the outputs, None for outputs that are not differentiable.

    Source: without a rule for it, the derivative of the cotangent's pullback, which is linear in the cotangent: J v is the
    pullback of v through u -> J^T u (J. Townsend, "A new trick for calculating Jacobian vector products", 2017).
    """
    if rules.jvp is not None:
        return _by_rule(rules, rules.jvp, call, tensors, outputs, tangents)
    if rules.once_differentiable:
        raise UnsupportedError(
            f"A forward-mode derivative of {rules.name} was asked for.",
            "it has no rule for it, and its gradient is marked once_differentiable",
            f"give one: @{rules.name}.jvp",
        )
    moving = [index for index, output in enumerate(outputs) if output.is_floating_point() or output.is_complex()]
    needed = [tangent is not None for tangent in tangents]

    def pull(*cotangents: Tensor) -> tuple[Tensor, ...]:
        everything = [torch.zeros_like(output) for output in outputs]
        for index, cotangent in zip(moving, cotangents, strict=True):
            everything[index] = cotangent
        gradients = pull_back(rules, call, tensors, outputs, everything, needed)
        return tuple(gradient for gradient in gradients if gradient is not None)

    push = torch.func.vjp(pull, *(torch.zeros_like(outputs[index]) for index in moving))[1]
    pushed = dict(zip(moving, push(tuple(tangent for tangent in tangents if tangent is not None)), strict=True))
    return [pushed.get(index) for index in range(len(outputs))]


def _by_rule(
    rules: Rules,
    rule: Rule,
    call: Call,
    tensors: Sequence[Tensor],
    outputs: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
) -> list[Tensor | None]:
    full = [torch.zeros_like(t) if v is None else v for v, t in zip(tangents, tensors, strict=True)]
    values = call.values(full)
    first = (values[0] if len(values) == 1 else tuple(values), call.output.unpack(outputs))
    named = dict(tree.named_leaves(call.pass_to(rule, first, tensors)))
    result: list[Tensor | None] = []
    for path, output in zip(call.output.paths, outputs, strict=True):
        if not (output.is_floating_point() or output.is_complex()):
            result.append(None)
            continue
        tangent = named.get(path)
        if not isinstance(tangent, Tensor) or tangent.shape != output.shape or tangent.is_complex() != output.is_complex():
            found = f"{tangent.dtype} {list(tangent.shape)}" if isinstance(tangent, Tensor) else type(tangent).__name__
            raise StructureError(
                f"The forward rule of {rules.name} returns a tangent like its answer: {output.dtype} {list(output.shape)}.",
                found + (f" at '{path}'" if path else ""),
                "return the structure, shapes and dtypes of the answer",
            )
        result.append(tangent.to(output.dtype))
    return result
