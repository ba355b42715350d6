"""How many bytes of tensors are alive at most while something runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Sums up the storages of results that are alive after each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in before:
                self.alive[StorageWeakRef(t.untyped_storage())] = t.untyped_storage().nbytes()
        self.alive = {s: n for s, n in self.alive.items() if not s.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def peak(run: Callable[[], Any]) -> int:
    """Bytes of what `run` makes, at the most."""
    with Live() as live:
        kept = run()
    del kept
    return live.peak
