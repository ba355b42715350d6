"""A dispatch mode that leaves PyTorch's compiler alone: not imported (which takes seconds at the first op) and, where a program
has imported it, kept out of the mode's own Python."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LightMode(TorchDispatchMode):
    """Base of modes that see every op below autograd; they override `see`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Do without the wrapper of PyTorch, which imports the compiler at the first op."""
        return False

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op.

        Args:
            func: the op.
            args, kwargs: its arguments.

        Returns:
            What the op returns.
        """
        return func(*args, **kwargs)

    def note_irregular(self, reason: str, *, lasting: bool) -> None:
        """Be told that this run does what a later one of the same program would not do, or would do otherwise.

        Args:
            reason: what it does.
            lasting: whether every run may.
        """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        see = _see_shielded if "torch._dynamo" in sys.modules else _see
        return see(self, func, args, kwargs or {})


def _see(mode: LightMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return mode.see(func, args, kwargs)


_see_shielded: Any = torch._disable_dynamo(_see, recursive=True)
