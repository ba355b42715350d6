"""`optim`: torch's optimizers on a gradient function and its tree of parameters."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.errors import LeafError, StructureError
from hesse.core.tree import Tree
from hesse.derivatives import GradResult

Options = Mapping[str, Any]
Factory = Callable[[Any], torch.optim.Optimizer]


class OptimStep:
    """``step(*args, **kwargs)``: one step of an optimizer, made by `optim`.

    Attributes:
        optimizer: the torch optimizer, for schedulers, learning rates and state.
        params: the tree that was given, whose tensors the steps change in place.
    """

    def __init__(self, df: Callable[..., Any], params: Tree, factory: Factory, *, groups: Any, transform: Any) -> None:
        self.params = params
        self._df, self._transform = df, transform
        named = tree.named_leaves(params)
        _, self._structure = tree.flatten(params)
        self._names = [name for name, _ in named]
        self._given: list[Tensor] = [leaf for _, leaf in named]
        for name, leaf in named:
            _require_updatable(name, leaf)
        self._owned, self._places = _same_memory([leaf.detach() for leaf in self._given])
        self._memory = {leaf.untyped_storage().data_ptr() for leaf in self._owned}
        self._tree = self._structure.unflatten([self._owned[place] for place in self._places])
        first_name = {place: name for name, place in reversed(list(zip(self._names, self._places, strict=True)))}
        names = [first_name[place] for place in range(len(self._owned))]
        if not callable(factory):
            raise _no_factory(factory)
        self.optimizer = factory(_grouped(dict(zip(names, self._owned, strict=True)), groups))
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise _no_factory(self.optimizer)
        _require_known_options(self.optimizer, groups)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step on ``df(params, *args, **kwargs)``.

        Returns:
            What `df` returned at its first evaluation in this step, that is, before the parameters changed.

        Raises:
            StructureError: a tensor of the tree has been replaced since, or the gradients do not match the parameters, or
                an optimizer that reads the loss gets none.

        Cost: one call of `df` for each evaluation that the optimizer asks for: one, or several for line searches.
        """
        self._require_same_leaves()
        grad_mode = torch.is_grad_enabled()  # optimizers evaluate with gradients enabled, whatever the caller chose
        results: list[Any] = []

        def evaluate() -> Any:
            with torch.set_grad_enabled(grad_mode):
                result = self._df(self._tree, *args, **kwargs)
            results.append(result)
            grads, value = self._parts(result)
            self._write(grads)
            return value

        try:
            with torch.no_grad():
                self.optimizer.step(evaluate)
        except TypeError as error:
            if not results or self._parts(results[-1])[1] is not None:
                raise
            raise StructureError(
                f"{type(self.optimizer).__name__} reads the loss at each evaluation.",
                "a gradient function that returns the gradients alone",
                "use one that returns (grads, value): with_forward=True",
            ) from error
        finally:
            for leaf in self._owned:
                leaf.grad = None
        return results[0] if results else None

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, as torch has it; the parameters are the user's own to save."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; the state is copied."""
        self.optimizer.load_state_dict(copy.deepcopy(state))

    def __repr__(self) -> str:
        return f"optim({type(self.optimizer).__name__}, {len(self._owned)} leaves, {len(self.optimizer.param_groups)} groups)"

    def _parts(self, result: Any) -> tuple[Tree, Any]:
        """The gradients and the value in what the gradient function returned; no value where it returned gradients alone."""
        if isinstance(result, GradResult):
            return result.grads, result.value
        if not isinstance(result, tuple) or not result or tree.flatten(result)[1].spec == self._structure.spec:
            return result, None
        return result[0], result[1] if len(result) > 1 else None

    def _write(self, grads: Tree) -> None:
        if self._transform is not None:
            with torch.no_grad():
                grads = self._transform(grads)
        new = _leaves(grads)
        if len(new) != len(self._names) or any(g.shape != p.shape for g, p in zip(new, self._given, strict=True)):
            raise _mismatch(self._names, self._given, tree.named_leaves(grads))
        totals: dict[int, Tensor] = {}
        for place, gradient in zip(self._places, new, strict=True):
            totals[place] = totals[place] + gradient if place in totals else gradient
        for place, total in totals.items():  # a gradient that is one of the parameters must not change with it
            alias = total.untyped_storage().data_ptr() in self._memory
            self._owned[place].grad = total.detach().clone() if alias else total.detach()

    def _require_same_leaves(self) -> None:
        now = _leaves(self.params)
        complete = len(now) == len(self._names)
        for index, (name, given, place) in enumerate(zip(self._names, self._given, self._places, strict=True)):
            owned = self._owned[place]
            if not complete or now[index] is not given or given.device != owned.device or not owned.is_set_to(given):
                raise StructureError(
                    f"{self!r} changes the tensors that it was given, in place.",
                    f"'{name}' is another tensor now, or has other memory",
                    "assign by leaf.copy_(new) under torch.no_grad(), or call optim again",
                )


def optim(
    df: Callable[..., Any],
    params: Tree,
    factory: Factory,
    *,
    groups: Mapping[str, Options] | None = None,
    transform: Callable[[Tree], Tree] | None = None,
) -> OptimStep:
    """A function that takes one optimization step at each call.

    ``step = optim(df, params, lambda leaves: torch.optim.Adam(leaves, lr=1e-3))``; then ``step(x, y)`` calls
    ``df(params, x, y)``, changes the tensors of `params` in place and returns what `df` returned. Optimizers that evaluate
    several times a step (LBFGS) call `df` anew each time, at the parameters of that moment. Neither ``.grad`` nor
    ``requires_grad`` of the user's tensors changes. A tensor that stands in several places is one leaf of the optimizer, with
    the sum of its gradients.

    Args:
        df: ``df(params, *args, **kwargs)`` returns ``(grads, value, *extras)`` or the gradients alone, as `hesse.grad` has it.
        params: a tree of floating-point or complex tensors; integers, strings and None in it are left alone.
        factory: makes the `torch.optim.Optimizer`: it is given a list of tensors, or of torch's option groups if `groups` is
            given. A class whose options all have defaults will do.
        groups: options of leaves by path: shell patterns (``"*.bias"``) and torch's options. The first pattern that matches a
            leaf counts; leaves that none matches form the group without options of its own.
        transform: ``transform(grads) -> grads``, applied to the tree of gradients before each use, such as clipping; what
            `step` returns stays as `df` gave it.

    Returns:
        An `OptimStep`; schedulers work on its ``optimizer``.

    Raises:
        LeafError: a leaf that cannot be changed in place (a Python float) or has no gradient (integers), or a factory that
            makes no optimizer.
        StructureError: a tensor that overlaps itself, a pattern that matches no leaf, or an option that the optimizer does
            not have.

    Cost: a step costs one gradient for each evaluation; `optim` itself computes none.
    """
    return OptimStep(df, params, factory, groups=groups, transform=transform)


def _leaves(node: Tree) -> list[Any]:
    """`tree.leaves`, in a tenth of the time where dicts, lists and tuples hold tensors."""
    if type(node) not in (dict, list, tuple):
        return tree.leaves(node)
    found: list[Any] = []
    for child in node.values() if type(node) is dict else node:
        if isinstance(child, Tensor):
            found.append(child)
        else:
            found += _leaves(child)
    return found


def _require_updatable(name: str, leaf: Any) -> None:
    asked = "optim changes every leaf of the parameters in place."
    if not isinstance(leaf, Tensor):
        remedy = f"pass torch.tensor({leaf!r}); a constant can be closed over instead"
        raise LeafError(asked, f"'{name}' is a Python {type(leaf).__name__}", remedy)
    if not (leaf.is_floating_point() or leaf.is_complex()):
        raise LeafError(
            asked, f"'{name}' has dtype {leaf.dtype}, which has no gradient", "convert it, or pass it as an argument"
        )
    if any(stride == 0 and size > 1 for size, stride in zip(leaf.shape, leaf.stride(), strict=True)):
        raise StructureError(asked, f"'{name}' is expanded: its elements share memory", "pass leaf.clone()")


def _same_memory(leaves: list[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The distinct tensors among leaves, and for each leaf which of them it is."""
    distinct: list[Tensor] = []
    places: list[int] = []
    known: dict[Any, int] = {}
    for leaf in leaves:
        at = leaf.data_ptr()
        key = (at, leaf.device, leaf.dtype, leaf.shape, leaf.stride()) if at else len(places)  # empty tensors have no memory
        if key not in known:
            known[key] = len(distinct)
            distinct.append(leaf)
        places.append(known[key])
    return distinct, places


def _grouped(leaves: dict[str, Tensor], groups: Mapping[str, Options] | None) -> list[Tensor] | list[dict[str, Any]]:
    if groups is None:
        return list(leaves.values())
    members: dict[str | None, list[Tensor]] = {None: []} | {pattern: [] for pattern in groups}
    for name, leaf in leaves.items():
        members[next((p for p in groups if fnmatch.fnmatchcase(name, p)), None)].append(leaf)
    empty = [pattern for pattern in groups if not members[pattern]]
    if empty:
        raise StructureError(
            "Each pattern of optim(groups=) picks leaves by their paths.",
            f"'{empty[0]}' picks none that no earlier pattern picks",
            f"the paths are {list(leaves)[:8]}",
        )
    return [{"params": found, **(groups[p] if p is not None else {})} for p, found in members.items() if found]


def _no_factory(found: Any) -> LeafError:
    return LeafError(
        "optim(df, params, factory) needs a factory that makes a torch.optim.Optimizer of the leaves.",
        f"a {type(found).__name__}",
        "such as lambda leaves: torch.optim.Adam(leaves, lr=1e-3)",
    )


def _require_known_options(optimizer: torch.optim.Optimizer, groups: Mapping[str, Options] | None) -> None:
    """Refuse options that the optimizer does not have: torch takes any, and ignores a misspelled one."""
    for pattern, options in (groups or {}).items():
        unknown = [name for name in options if name not in optimizer.defaults]
        if unknown:
            raise StructureError(
                "optim(groups=) takes options of the optimizer.",
                f"'{unknown[0]}' for '{pattern}'",
                f"{type(optimizer).__name__} has {', '.join(optimizer.defaults)}; others go into optimizer.param_groups",
            )


def _mismatch(names: list[str], params: list[Tensor], grads: list[tuple[str, Any]]) -> StructureError:
    shapes = {name: tuple(getattr(g, "shape", ())) for name, g in grads}
    for name, p in zip(names, params, strict=True):
        if shapes.get(name) != tuple(p.shape):
            found = f"shape {shapes[name]} for" if name in shapes else "none for"
            break
    else:
        name, found = next(n for n in shapes if n not in names), "a gradient too many,"
    return StructureError(
        "optim needs one gradient for each leaf, of its shape.",
        f"{found} '{name}'",
        "return the gradients in the structure of the parameters, as hesse.grad does",
    )
