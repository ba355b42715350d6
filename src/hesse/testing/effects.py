"""Laws of what a product leaves behind: nothing; and the same product gives the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator
from hesse.testing.comparison import broken, require_close, source_of, tolerance, wide


def assert_no_side_effects(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """Products leave their input, torch's random state, the grad mode and the default dtype as they were."""
    source = source_of(generator)
    v, u = A.in_space.normal(generator=source), A.out_space.normal(generator=source)
    V, U = A.in_space.normal(2, generator=source), A.out_space.normal(2, generator=source)
    products: tuple[tuple[str, Callable[[Tree], Any], Tree], ...] = (
        ("A.mv(v)", A.mv, v), ("A.mm(V)", A.mm, V), ("A.T.mv(u)", A.T.mv, u), ("A.T.mm(U)", A.T.mm, U),
    )  # fmt: skip
    for what, product, vector in products:
        kept = [(path, leaf, leaf.clone()) for path, leaf in tree.named_leaves(vector)]
        before, random_state = _modes(), torch.get_rng_state()
        product(vector)
        changed = [f"the leaf '{path}' of the input" for path, leaf, copy in kept if _differs(leaf, copy)]
        changed += [name for name, value in _modes().items() if value != before[name]]
        changed += [] if torch.equal(torch.get_rng_state(), random_state) else ["torch's global random state"]
        if changed:
            remedy = "work out of place, draw from a generator of your own, and restore modes"
            raise broken(
                "no side effects", A, f"{what} changes nothing", f"changed {', '.join(changed)}", remedy
            )


def _modes() -> dict[str, Any]:
    return {"the grad mode": torch.is_grad_enabled(), "the default dtype": torch.get_default_dtype()}


def _differs(leaf: Tensor, copy: Tensor) -> bool:
    return leaf.requires_grad or leaf.grad is not None or not torch.equal(leaf, copy)


def assert_repeatable(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """The same product twice gives the same result (within `rtol`, since sums on a GPU may change order)."""
    v, allowed = A.in_space.normal(generator=source_of(generator)), tolerance(A, rtol)
    sides = wide(A.out_space, A.mv(v)), wide(A.out_space, A.mv(v))
    remedy = "fix the randomness when the operator is made, and keep no state between products"
    require_close(A, "repeatable", "A v = A v", sides, allowed, remedy)
