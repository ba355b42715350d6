"""What can be asked of `prepare_jacobian` and `prepare_hessian`, and what is refused before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hesse.autodiff.compiled.mode import Mode, require_mode
from hesse.autodiff.recording import inside_functorch
from hesse.core import tree
from hesse.core.errors import StructureError, UnsupportedError
from hesse.core.memory import Budget, parse_budget
from hesse.sparse.colored import ColoredPattern, Kind
from hesse.sparse.detect import Sparsity

_KINDS: dict[bool, tuple[Kind, ...]] = {False: ("column", "row", "bidirectional"), True: ("star", "acyclic", "column")}
GIVEN = "pass no pattern, or one with this entry"
LOCAL = "prepare it again at this point: a pattern of local=True holds where its branches are taken"
FOUND = (
    "prepare it again: the function is another one than was prepared, if what it closes over has changed; "
    "if nothing has, report it"
)


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        asked: as errors begin.
        hessian: whether it is a Hessian.
        kind: of the coloring; None leaves it open.
        compile: how it runs.
        memory: the budget.
    """

    asked: str
    hessian: bool
    kind: Kind | None
    compile: Mode
    memory: Budget | None

    def require(self, f: Any, x: Any, pattern: Any) -> None:
        """Refuse what cannot be prepared.

        Args:
            f: the function.
            x: the example.
            pattern: what was given as one; None where it is to be found.

        Raises:
            StructureError: f is no function; an unknown mode, kind or budget; a kind that is not the given coloring's.
            UnsupportedError: tensors on the meta device; inside a `torch.func` transform.
        """
        require_mode(self.compile, self.asked)
        if self.memory is not None:
            parse_budget(self.memory)
        if not callable(f):
            found = "an already computed tensor" if isinstance(f, Tensor) else type(f).__name__
            raise StructureError(self.asked, f"{found} in the place of the function", "pass the function, then the point")
        self._require_kind(pattern)
        if inside_functorch():
            raise UnsupportedError(self.asked, "it is called inside of a torch.func transform, whose tensors cannot be read",
                                   "prepare it outside, at an example, and evaluate it inside")  # fmt: skip
        for name, leaf in [*tree.named_leaves(x), ("pattern", pattern)]:
            if isinstance(leaf, Tensor) and leaf.device.type == "meta":
                raise UnsupportedError(
                    self.asked, f"'{name or 'x'}' on the meta device, without values", "pass one with values"
                )

    def _require_kind(self, pattern: Any) -> None:
        known = _KINDS[self.hessian]
        own = pattern.kind if isinstance(pattern, ColoredPattern) else None
        if self.kind is not None and self.kind not in known:
            raise StructureError(self.asked, f"kind={self.kind!r}", self._remedy(known))
        if own is not None and own not in known:
            raise StructureError(self.asked, f"a pattern colored by kind '{own}'", f"{self._remedy(known)} (to coloring)")
        if own is not None and self.kind not in (None, own):
            raise StructureError(self.asked, f"kind='{self.kind}' for a pattern that is colored by kind '{own}'",
                                 f"pass kind='{own}' or none, or color it anew: pattern=colored.pattern")  # fmt: skip

    def _remedy(self, known: tuple[Kind, ...]) -> str:
        of = "the rest is for Jacobians" if self.hessian else "star and acyclic colorings are for Hessians"
        return f"pass kind={', '.join(map(repr, known[:-1]))} or {known[-1]!r}: {of}"

    def remedy(self, pattern: Any, *, local: bool) -> str:
        """What to do where an entry is missing.

        Args:
            pattern: what was given.
            local: whether it was found at one point.
        """
        if local or (isinstance(pattern, Sparsity) and pattern.local):
            return LOCAL
        return FOUND if pattern is None else GIVEN
