"""What `trace_graph` is asked to trace: names for everything it touches, arguments of its own, and nothing of it changed."""

from __future__ import annotations

import functools
import inspect
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hesse.autodiff.functional import buffers_preserved
from hesse.autodiff.graphs.recorder import Outside
from hesse.core import tree
from hesse.core.errors import LeafError, StructureError
from hesse.core.names import layer_of

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_DEEPEST = 3


class GraphSubject:
    """A call that can be traced.

    Args:
        f: a function, method or module.
        args, kwargs: of the call.
        argnums: which arguments to differentiate by; None for the rule of `trace_graph`.

    Attributes:
        title: what it is called.
        modules: the modules that it is or reaches, by name.
        variables: what to differentiate by, with names.
        outside: names of the tensors that it is given and of those it reaches.

    Raises:
        LeafError: a module with parameters that are not initialized, or nothing to differentiate by at `argnums`.
        StructureError: something that cannot be called, or a class of modules; `argnums` beyond the arguments.
    """

    def __init__(
        self, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], argnums: int | Sequence[int] | None
    ) -> None:
        _require_callable(f)
        self.title = _title(f)
        self.modules: dict[str, nn.Module] = {}
        self.variables: list[tuple[str, Tensor]] = []
        self.outside: list[tuple[Tensor, Outside]] = []
        named = _named(f, args, kwargs)
        found = {**_reached(f), **{name: value for name, value in named.items() if isinstance(value, nn.Module)}}
        for name, value in found.items():
            if isinstance(value, nn.Module):
                self._add_module(name, value)
            elif all(value is not known for known, _ in self.outside):
                self.outside.append((value, Outside(name, "parameter")))
                self.variables.append((name, value))
        seen, leaves = {id(value) for value, _ in self.outside}, list[tuple[str, Tensor]]()
        for name, leaf in tree.named_leaves(named):
            if isinstance(leaf, Tensor) and id(leaf) not in seen:  # a tensor given twice stays one
                seen.add(id(leaf))
                leaves.append((name, leaf))
        wanted = self._wanted(args, leaves, argnums)
        copies = {id(leaf): self._copy(name, leaf, id(leaf) in wanted) for name, leaf in leaves}

        def copied(leaf: Any) -> Any:
            return copies.get(id(leaf), leaf)

        self._f, self._call = f, (tree.map_tree(copied, args), tree.map_tree(copied, kwargs))

    def run(self) -> Any:
        """Call it, with copies of its arguments (in-place ops do not reach the user's)."""
        args, kwargs = self._call
        return self._f(*args, **kwargs)

    def _add_module(self, name: str, module: nn.Module) -> None:
        self.modules[name] = module
        known = {id(value) for value, _ in self.outside}
        for path, kind, value in _tensors_of(module):
            if nn.parameter.is_lazy(value):
                raise LeafError(
                    "A module is traced by running it as it is.",
                    f"'{path}' is not initialized yet (a lazy module)",
                    "run the module once on a batch first",
                )
            if id(value) not in known:
                known.add(id(value))
                full = f"{name}.{path}" if name else path
                self.outside.append((value, Outside(full, kind, layer_of(full))))
                self.variables += [(full, value)] if kind == "parameter" else []

    def _wanted(self, args: tuple[Any, ...], leaves: list[tuple[str, Tensor]], argnums: int | Sequence[int] | None) -> set[int]:
        """The ids of the argument leaves to differentiate by."""
        smooth = [leaf for _, leaf in leaves if leaf.is_floating_point() or leaf.is_complex()]
        if argnums is None:
            chosen = [leaf for leaf in smooth if leaf.requires_grad]
            trained = any(value.requires_grad for _, value in self.variables)
            return {id(leaf) for leaf in (chosen if chosen or trained else smooth)}
        numbers = [argnums] if isinstance(argnums, int) else list(argnums)
        asked = f"The arguments {numbers} were to be differentiated by."
        if any(not -len(args) <= number < len(args) for number in numbers):
            raise StructureError(asked, f"{len(args)} positional arguments", "count from 0; keyword arguments have no number")
        inside = {id(leaf) for number in numbers for leaf in tree.leaves(args[number])}
        wanted = {id(leaf) for leaf in smooth} & inside
        if not wanted:
            raise LeafError(asked, "no floating-point or complex tensor in them", "name arguments that hold some")
        return wanted

    def _copy(self, name: str, leaf: Tensor, wanted: bool) -> Tensor:
        if type(leaf) not in _PLAIN:  # such a tensor is not copied, so that only what it holds can be written into
            leaf = leaf.detach().requires_grad_() if wanted and not leaf.requires_grad else leaf
            self.outside.append((leaf, Outside(name, "input")))
            self.variables += [(name, leaf)] if wanted else []
            return leaf
        with torch.inference_mode(False), torch.enable_grad():
            own = leaf.detach().clone().requires_grad_(wanted)
            given = own.clone() if wanted else own  # no leaf, so that ops in place are allowed
        self.outside.append((given, Outside(name, "input")))
        self.variables += [(name, own)] if wanted else []
        return given

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Put back what the call changes: random states; buffers, `.grad` and training flags of the modules."""
        with ExitStack() as stack:
            cards = {v.device.index or 0 for v, _ in self.outside if v.device.type == "cuda"}
            stack.enter_context(torch.random.fork_rng(devices=sorted(cards)))
            stack.callback(random.setstate, random.getstate())
            stack.callback(np.random.set_state, np.random.get_state())
            for module in self.modules.values():
                stack.enter_context(buffers_preserved(module))
                stack.enter_context(_gradients_preserved(module))
                stack.callback(_set_flags, [(part, part.training) for part in module.modules()])
            yield


def _require_callable(f: Any) -> None:
    asked = "A function or a module is traced by calling it."
    if isinstance(f, type) and issubclass(f, nn.Module):
        raise StructureError(asked, f"the class {f.__name__}", f"make a module of it: {f.__name__}(...)")
    if not callable(f):
        raise StructureError(asked, f"a {type(f).__name__}", "pass the function first, then its arguments")


def _title(f: Any) -> str:
    if isinstance(f, nn.Module):
        return type(f).__name__
    f = f.func if isinstance(f, functools.partial) else f
    name = getattr(f, "__qualname__", type(f).__name__).rpartition("<locals>.")[2]
    if name == "<lambda>":
        return f"lambda at {os.path.basename(f.__code__.co_filename)}:{f.__code__.co_firstlineno}"
    return name


def _named(f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by the names that the function has for them."""
    try:
        bound = inspect.signature(f.forward if isinstance(f, nn.Module) else f).bind(*args, **kwargs)
    except (TypeError, ValueError):  # no signature, or one that does not match: the call itself says what is wrong
        return {**{f"argument {number}": value for number, value in enumerate(args)}, **kwargs}
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        named.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return named


def _reached(f: Any, depth: int = 0) -> dict[str, Any]:
    """The modules, and the tensors that require grad, which a function reaches without being given them, by variable name."""
    if isinstance(f, nn.Module):
        return {"": f}
    if isinstance(f, functools.partial):
        extra = {f"argument {number}": value for number, value in enumerate(f.args)}
        return {**_reached(f.func, depth), **_kept({**extra, **f.keywords}, depth)}
    if isinstance(f, MethodType):
        owner = {"": f.__self__} if isinstance(f.__self__, nn.Module) else _kept(_attributes(f.__self__), depth)
        return {**owner, **_reached(f.__func__, depth)}
    if isinstance(f, FunctionType):
        return _kept(_variables(f), depth)
    return _kept(_attributes(f), depth)


def _attributes(value: Any) -> Mapping[str, Any]:
    return getattr(value, "__dict__", {})


def _variables(f: FunctionType) -> dict[str, Any]:
    """What the variables of a function's code refer to outside of it."""
    found = {name: f.__globals__[name] for name in f.__code__.co_names if name in f.__globals__}
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _kept(named: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """The modules and trainable tensors among named values, and those that functions among them reach."""
    found: dict[str, Any] = {}
    for name, value in named.items():
        if isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.requires_grad):
            found[name] = value
        elif isinstance(value, (list, tuple, dict)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            found |= _kept({f"{name}.{key}": item for key, item in items if isinstance(item, (nn.Module, Tensor))}, depth)
        elif isinstance(value, (FunctionType, MethodType, functools.partial)) and depth < _DEEPEST:
            inner = _reached(value, depth + 1)
            found |= {key or name: item for key, item in inner.items() if (key or name) not in found}
    return found


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Any, Tensor]]:
    for path, value in module.named_parameters():
        yield path, "parameter", value
    for path, value in module.named_buffers():
        yield path, "buffer", value


@contextmanager
def _gradients_preserved(module: nn.Module) -> Iterator[None]:
    """Put back the `.grad` of every parameter, should the call itself run a backward pass."""
    before = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in module.parameters()]
    try:
        yield
    finally:
        for parameter, gradient, value in before:
            parameter.grad = gradient
            if gradient is not None and value is not None:
                gradient.detach().copy_(value)


def _set_flags(flags: list[tuple[nn.Module, bool]]) -> None:
    for module, training in flags:
        module.training = training
