"""What the very first call writes to: a second call may not change what was changed already."""

from __future__ import annotations

from torch import Tensor

from hesse.autodiff.recording import nodes
from hesse.check.functions.case import Case
from hesse.check.functions.subject import Subject

_CHECK = "inputs unchanged by the first call"
_WORDS = "the forward pass writes to its input"


class Given:
    """The tensors of a point as they are given, to be compared with what a first call leaves of them.

    Args:
        subject: the function, before it runs.
    """

    def __init__(self, subject: Subject) -> None:
        self._now = {**dict(zip(subject.names, subject.leaves, strict=True)), **subject.constants}
        self._before = {name: t.clone() for name, t in self._now.items()}
        self._versions = {name: t._version for name, t in self._now.items()}

    @property
    def changed(self) -> list[str]:
        """Names of the tensors that are others by now."""
        return [name for name, t in self._now.items() if not _is_same(t, self._before[name])]

    def judge(self, case: Case, outputs: list[Tensor]) -> None:
        """Note what was written to.

        Tables that `torch.nn.functional.embedding` renormalizes, as `max_norm` asks it to, are noted only.

        Args:
            case: where to note it.
            outputs: of the first call.
        """
        changed = self.changed
        roots = [y.grad_fn for y in outputs if y.grad_fn is not None]
        tables = any(type(node).__name__.startswith("Embedding") for node in nodes(roots)) if changed else False
        for name in changed:
            if tables and self._now[name]._version != self._versions[name]:
                case.note(f"the forward pass renormalizes '{name}' in place")
            else:
                case.same(_CHECK, [self._now[name]], [self._before[name]], words=_WORDS, by_leaf=False, names=[name])


def _is_same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())
