"""Which module's call is running? Paths of modules, by hooks on all modules that stand only while a block runs.

Two ways to name them: `ModuleCalls` tells calls apart, for graphs; `ModulePaths` looks a path up, for what watches every op.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_LONGEST = 90
_WRAPPERS = ("_orig_mod.", "module.")
Call = TypeVar("Call")


class _Following(ABC, Generic[Call]):
    """Follows the calls of modules on this thread, and keeps something of each that runs."""

    def __init__(self) -> None:
        self._stack: list[tuple[nn.Module, Call]] = []
        self._thread = threading.get_ident()

    @abstractmethod
    def _entered(self, module: nn.Module) -> Call:
        """What to keep of a call that begins."""

    def _changed(self) -> None:
        """Another call is the innermost one."""

    @contextmanager
    def watching(self) -> Iterator[None]:
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
        if threading.get_ident() == self._thread:
            self._stack.append((module, self._entered(module)))
            self._changed()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if threading.get_ident() == self._thread:
            while self._stack and self._stack.pop()[0] is not module:
                pass
            self._changed()


class ModulePaths(_Following[str]):
    """Follows calls cheaply: a path is looked up, not made, at each call.

    Args:
        here: called with the path of the innermost running module whenever that changes; relative to the outermost one, whose
            own path is its class; empty outside of all modules.

    Attributes:
        roots: the outermost modules that were called.
    """

    def __init__(self, here: Callable[[str], Any]) -> None:
        super().__init__()
        self.roots: list[nn.Module] = []
        self._here = here
        self._paths: dict[int, dict[int, str]] = {}

    def _entered(self, module: nn.Module) -> str:
        root = self._stack[0][0] if self._stack else module
        paths = self._paths.get(id(root))
        if paths is None:
            self.roots.append(root)  # alive, so that no other module gets its id
            paths = self._paths[id(root)] = {id(part): bare(path) for path, part in root.named_modules()}
        return paths.get(id(module)) or type(module).__name__

    def _changed(self) -> None:
        self._here(self._stack[-1][1] if self._stack else "")


def bare(path: str) -> str:
    """A module's or parameter's path without the names that wrappers (`DistributedDataParallel`, `torch.compile`) put first."""
    for wrapper in _WRAPPERS:
        path = path.removeprefix(wrapper)
        path = "" if path == wrapper[:-1] else path
    return path


@dataclass(frozen=True)
class _Run:
    """A running call: the module's path by attributes, the path shown, and whether autograd's engine runs it."""

    path: str
    shown: str
    in_pass: bool


class ModuleCalls(_Following[_Run]):
    """Follows calls and tells them apart.

    Args:
        roots: the modules known by name; an empty name for the module that is traced itself. Others are named by their class
            when they are first called.

    Attributes:
        texts: what each module that was called is ("Linear(in_features=3, out_features=2, bias=True)"), by the path shown.
    """

    def __init__(self, roots: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self._modules: list[nn.Module] = []
        self._paths: dict[int, str] = {}
        self._calls: Counter[str] = Counter()
        for name, module in roots.items():
            self._learn(name, module)

    def _learn(self, name: str, module: nn.Module) -> None:
        self._modules.append(module)  # alive, so that no other module gets its id
        for path, part in module.named_modules():
            self._paths.setdefault(id(part), _joined(name, path))

    @property
    def here(self) -> str:
        """The path shown of the innermost call; empty outside of all modules."""
        return self._stack[-1][1].shown if self._stack and threading.get_ident() == self._thread else ""

    @property
    def in_pass(self) -> bool:
        """Whether the innermost call was started by autograd's engine (a checkpoint that computes again)."""
        return bool(self._stack) and self._stack[-1][1].in_pass

    def owner(self, path: str) -> str:
        """The path shown of the innermost running call of a module that owns a parameter of this path."""
        for _, call in reversed(self._stack):
            if _within(path, call.path):
                return call.shown
        return self.here

    def nearest(self, path: str) -> str:
        """The path itself or, where no such module was called, that of the nearest one around it that was."""
        while path and path not in self.texts:
            path = path.rpartition(".")[0]
        return path

    def _entered(self, module: nn.Module) -> _Run:
        around = self._stack[-1][1] if self._stack else None
        if id(module) not in self._paths:
            self._learn(self._name(module, around), module)
        path = shown = self._paths[id(module)]
        if around is not None:
            rest = path[len(around.path) :].lstrip(".") if _within(path, around.path) else path
            shown = _joined(around.shown, rest or type(module).__name__)
        self._calls[shown] += 1
        shown += f"#{self._calls[shown]}" if self._calls[shown] > 1 else ""
        self.texts[shown] = _text(module)
        return _Run(path, shown, torch._C._current_graph_task_id() != -1)

    def _name(self, module: nn.Module, around: _Run | None) -> str:
        """A path for a module that nobody named: its class, within the module that calls it, numbered if that is taken."""
        name = free = _joined(around.path if around is not None else "", type(module).__name__)
        taken, number = set(self._paths.values()), 2
        while free in taken:
            free, number = f"{name}_{number}", number + 1
        return free


def _within(path: str, owner: str) -> bool:
    return not owner or path == owner or path.startswith(f"{owner}.")


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))


def _text(module: nn.Module) -> str:
    """The class with its options, on one line; a long one is cut."""
    extra = " ".join(module.extra_repr().split())
    text = f"{type(module).__name__}({extra})"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
