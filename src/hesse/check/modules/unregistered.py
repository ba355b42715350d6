"""Tensors that are trained through a module and that the module does not know of."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from hesse.autodiff.passes import backward_pass
from hesse.autodiff.recording import nodes
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Named, Run, Specimen

_CHECK = "registered parameters"
_DEEPEST = 6  # containers inside each other
_MOST = 10_000  # objects that are looked at
_KNOWN = ("_parameters", "_buffers", "_modules")  # of a module, walked by name
_CLOSED = (Tensor, type, FunctionType, MethodType, BuiltinFunctionType, ModuleType)  # holds nothing of the module's own


def held_results(module: nn.Module) -> Named:
    """Tensors with a graph that the parts of a module hold as attributes, by path."""
    found = {}
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                found[f"{path}.{key}" if path else key] = value
    return found


def check_registered(specimen: Specimen, run: Run, ledger: Ledger, results: Named) -> None:
    """Find what the gradient of a run reaches besides parameters and inputs.

    A tensor that the module holds in a list, a dict, an object or as a plain attribute is missed by `parameters()`,
    `state_dict()`, `to()` and optimizers. One that another module registers is borrowed, and noted; so is one that the module
    does not hold. A result that was computed from parameters once, when the module was made, does not follow them.

    Args:
        specimen: the module, the user's own, right after its first run.
        run: that run.
        ledger: where to report.
        results: of `held_results`, before that run.

    Cost: 1 backward pass where there are such tensors.
    """
    module = specimen.module
    roots = [y.grad_fn for y in run.outputs.values() if y.grad_fn is not None]
    graph = list(nodes(roots))
    own = {id(t) for t in (*module.parameters(), *run.leaves.values())}
    leaves = [node.variable for node in graph if type(node).__name__ == "AccumulateGrad"]
    foreign = [t for t in leaves if id(t) not in own]
    count = len(ledger.findings)
    for path, t in results.items():
        if any(t.grad_fn is node for node in graph):
            ledger.wrong(_CHECK, "it was computed once, outside of forward(): it does not follow what it depends on, and its "
                         "graph is good for one backward pass; compute it in forward()", path)  # fmt: skip
    if foreign:
        u = [specimen.cotangents[name] for name in run.outputs]
        gradients = backward_pass(list(run.outputs.values()), foreign, u)
        _judge(module, [t for t, g in zip(foreign, gradients, strict=True) if g.any()], ledger)
    if len(ledger.findings) == count:
        ledger.fine(_CHECK)


def _judge(module: nn.Module, tensors: list[Tensor], ledger: Ledger) -> None:
    holdings = list(_held(module)) if tensors else []
    for t in tensors:
        path = next((path for path, value in holdings if value is t), None)
        if path is None:
            ledger.note(f"held: a tensor of shape {tuple(t.shape)} that requires gradients and is no part of the module")
        elif any(t is buffer for buffer in module.buffers()):
            ledger.note(f"the buffer '{path}' requires gradients, but parameters() does not name it")
        elif _is_borrowed(t, module, [value for _, value in holdings if isinstance(value, nn.Module)]):
            ledger.note(f"held: '{path}', which another module registers")
        else:
            ledger.wrong(_CHECK, "it is trained, but is no registered parameter: parameters(), state_dict() and to() miss it; "
                         "make it an nn.Parameter of the module, or hold it in a ParameterList, ParameterDict or ModuleList",
                         path)  # fmt: skip


def _held(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module holds, in containers and objects too, with its path: "scales[0]", "parts['a']", "other.scale"."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", module, 0)]
    while waiting and len(seen) < _MOST:
        path, value, depth = waiting.pop(0)
        if id(value) in seen or depth > _DEEPEST:
            continue
        seen.add(id(value))
        if path:
            yield path, value
        waiting += [(name, part, depth + 1) for name, part in _parts(path, value)]


def _parts(path: str, value: Any) -> list[tuple[str, Any]]:
    dot = f"{path}." if path else ""
    if isinstance(value, nn.Module):
        named = [(key, part) for kind in _KNOWN for key, part in vars(value)[kind].items()]
        named += [(key, part) for key, part in vars(value).items() if key not in _KNOWN]
        return [(f"{dot}{key}", part) for key, part in named]
    if isinstance(value, dict):
        return [(f"{path}[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"{path}[{number}]", part) for number, part in enumerate(value)]
    if isinstance(value, _CLOSED) or not hasattr(value, "__dict__"):
        return []
    return [(f"{dot}{key}", part) for key, part in vars(value).items()]


def _is_borrowed(tensor: Tensor, module: nn.Module, held: list[nn.Module]) -> bool:
    """Whether a live module elsewhere registers a tensor, or registers a module that this one only holds."""
    inside = [one for one in held if not any(part is module for part in one.modules())]  # but for what the module is a part of
    mine = {id(part) for one in (module, *inside) for part in one.modules()}
    lent = {id(part) for part in inside if any(tensor is p for p in part.parameters())}
    elsewhere = (o for o in gc.get_objects() if issubclass(type(o), nn.Module) and id(o) not in mine and "_modules" in vars(o))
    return any(
        any(tensor is p for p in other._parameters.values()) or any(id(part) in lent for part in other._modules.values())
        for other in elsewhere
    )
