"""Laws of what a product leaves behind: nothing; and the same product gives the same result, in every mode."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hesse.check.operators.evidence import Evidence, Fact, Sides, wide
from hesse.check.operators.probe import Probe, copied, modes_kept
from hesse.core import tree
from hesse.core.tree import Tree
from hesse.operators import LinearOperator

_REMEDY = "work out of place, draw from a generator of your own, and restore modes"
_STATE = "fix the randomness when the operator is made, and keep no state between products"
_REPEATS = 20


def side_effects(probe: Probe) -> Iterator[Evidence]:
    """Products leave their input, random states, the grad mode and the default dtype as they were."""
    for name, B in probe.sides:
        products: tuple[tuple[str, Callable[[Tree], Any], Tree], ...] = (
            (f"{name}.mv", B.mv, probe.vector(B.in_space)),
            (f"{name}.mm", B.mm, probe.vector(B.in_space, 2)),
        )
        for what, product, vector in products:
            probe.products += 1
            yield Fact(f"{what} changes nothing", _changed(product, vector), _REMEDY)


def _changed(product: Callable[[Tree], Any], vector: Tree) -> str:
    """What a product changed, in words; torch's random state, Python's and the modes are put back."""
    kept = [(path, leaf, leaf.clone()) for path, leaf in tree.named_leaves(vector)]
    before, own, python = _modes(), torch.get_rng_state(), random.getstate()
    with modes_kept():
        product(vector)
        changed = [
            f"the leaf '{path}' of its input" if path else "its input" for path, leaf, copy in kept if _differs(leaf, copy)
        ]
        changed += [name for name, value in _modes().items() if value != before[name]]
    if not torch.equal(torch.get_rng_state(), own):
        changed.append("torch's global random state")
        torch.set_rng_state(own)
    if random.getstate() != python:
        changed.append("Python's random state")
        random.setstate(python)
    return f"it changed {', '.join(changed)}" if changed else ""


def _modes() -> dict[str, Any]:
    return {"the grad mode": torch.is_grad_enabled(), "the default dtype": torch.get_default_dtype()}


def _differs(leaf: Tensor, copy: Tensor) -> bool:
    return leaf.requires_grad or leaf.grad is not None or not torch.equal(leaf, copy)


def repeatable(probe: Probe) -> Iterator[Evidence]:
    """The same product gives the same result after another one (within rounding: sums on a GPU change their order)."""
    for name, B in probe.sides:
        v, w = probe.vector(B.in_space), probe.vector(B.in_space)
        first = probe.flat(B, v)
        for count in range(_REPEATS if probe.thorough else 2):
            probe.mv(B, w)
            yield Sides(f"{name} v = {name} v, repetition {count + 1}", probe.flat(B, v), first, _STATE, B.out_space)


def fresh_results(probe: Probe) -> Iterator[Evidence]:
    """A result stays what it is when the next product is computed."""
    remedy = "return a new tensor, not a buffer of the operator"
    for name, B in probe.sides:
        products: tuple[tuple[str, Callable[[Tree], Tree], int], ...] = ((f"{name} mv", B.mv, 0), (f"{name} mm", B.mm, 1))
        for what, product, lead in products:
            v, w = (probe.vector(B.in_space, *((2,) if lead else ())) for _ in range(2))
            with modes_kept():
                result = product(v)
                own = copied(result)
                product(w)
            found, expected = wide(B.out_space, result, lead), wide(B.out_space, own, lead)
            yield Sides(f"the result of {what} survives the next one", found, expected, remedy, B.out_space)


def modes(probe: Probe) -> Iterator[Evidence]:
    """The result is the same without grad mode, for vectors that require gradients, and under another default dtype."""
    remedy = "switch on the grad mode where the product needs it, detach inputs, give every new tensor its dtype"
    for name, B in probe.chosen:
        v = probe.vector(B.in_space)
        expected = probe.flat(B, v)
        with torch.no_grad():
            yield Sides(f"{name} v without grad mode = {name} v", probe.flat(B, v), expected, remedy, B.out_space)
        yield Sides(f"{name} v where v requires grad = {name} v", _tracked(B, v), expected, remedy, B.out_space)
        if not probe.thorough:
            continue
        with modes_kept():
            other = torch.float32 if torch.get_default_dtype() == torch.float64 else torch.float64
            torch.set_default_dtype(other)
            result = B.mv(copied(v))
            same = [leaf.dtype for leaf in tree.leaves(result)] == list(B.out_space.dtypes)
            found = probe.flat(B, v)
        yield Sides(f"{name} v under another default dtype = {name} v", found, expected, remedy, B.out_space)
        breach = "" if same else "other dtypes came back"
        yield Fact(f"{name} v has the dtypes of its space under another default dtype", breach, remedy)


def _tracked(B: LinearOperator, v: Tree) -> Tensor:
    tracked = tree.map_tree(lambda leaf: leaf.detach().clone().requires_grad_(), v)
    with modes_kept(), torch.enable_grad():
        return wide(B.out_space, B.mv(tracked))
