"""The path of the module whose call is running, by hooks on all modules that stand only while a block runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_WRAPPERS = ("_orig_mod.", "module.")


class ModulePaths:
    """Follows the calls of modules on this thread, cheaply: a path is looked up, not made, at each call.

    Args:
        here: called with the path of the innermost running module whenever that changes; relative to the outermost one, whose
            own path is its class; empty outside of all modules.

    Attributes:
        roots: the outermost modules that were called.
    """

    def __init__(self, here: Callable[[str], Any]) -> None:
        self.roots: list[nn.Module] = []
        self._here, self._thread = here, threading.get_ident()
        self._paths: dict[int, dict[int, str]] = {}
        self._stack: list[tuple[nn.Module, str]] = []

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow calls inside; the hooks are taken away after it."""
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()
            self._stack.clear()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        root = self._stack[0][0] if self._stack else module
        paths = self._paths.get(id(root))
        if paths is None:
            self.roots.append(root)  # alive, so that no other module gets its id
            paths = self._paths[id(root)] = {id(part): bare(path) for path, part in root.named_modules()}
        path = paths.get(id(module)) or type(module).__name__
        self._stack.append((module, path))
        self._here(path)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        while self._stack and self._stack.pop()[0] is not module:
            pass
        self._here(self._stack[-1][1] if self._stack else "")


def bare(path: str) -> str:
    """A module's or parameter's path without the names that wrappers (`DistributedDataParallel`, `torch.compile`) put first."""
    for wrapper in _WRAPPERS:
        path = path.removeprefix(wrapper)
        path = "" if path == wrapper[:-1] else path
    return path
