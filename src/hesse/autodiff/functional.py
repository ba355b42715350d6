"""`functional`: a module as a pure function of its parameters."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hesse.core.errors import LeafError, StructureError
from hesse.core.wrapped import unwrapped

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_runs: WeakKeyDictionary[nn.Module, dict[int, int]] = WeakKeyDictionary()  # of each thread
_fresh = itertools.count(1)
_guard = threading.Lock()
_Part = tuple[str, nn.Module]
_Slot = tuple[dict[str, Any], str, Tensor | None]  # the place, the name in it, and what stood there
_JITTED = (torch.jit.ScriptModule, torch.jit.ScriptFunction)


class FunctionalModule:
    """``f(params, *inputs, **inputs)`` of a module; made by `functional`.

    Tensors are put in place by hand: for a perceptron of three layers (torch 2.13) that adds 16 microseconds where
    `torch.func.functional_call` adds 74, which is used only under `torch.compile`, since that knows it.
    """

    def __init__(self, module: nn.Module, lock: threading.RLock) -> None:
        self.module, self._lock = module, lock
        first_name: dict[int, str] = {}
        self._owners: dict[str, dict[str, str]] = {}  # by path of the part: which parameter serves each of its slots
        for prefix, part in _parts(module):  # every module once, so that a shared module is swapped once
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    owner = first_name.setdefault(id(parameter), prefix + name)
                    self._owners.setdefault(prefix, {})[name] = owner
        self._slots = {prefix + name: owner for prefix, own in self._owners.items() for name, owner in own.items()}

    def __call__(self, params: dict[str, Tensor], *inputs: Any, **named: Any) -> Any:
        self._require_known(params)
        if torch.compiler.is_compiling():
            return self._traced(params, inputs, named)
        with self._lock, _counted(self.module):
            replaced: list[_Slot] = []
            try:
                self._replace(params, replaced)
                return self.module(*inputs, **named)
            finally:
                for slots, name, original in reversed(replaced):
                    slots[name] = original

    def _replace(self, params: dict[str, Tensor], replaced: list[_Slot]) -> None:
        """Put parameters and copies of the buffers into their places; notes what was there."""
        copies: dict[int, Tensor] = {}  # a buffer that two modules share stays shared
        unseen = len(self._owners)
        for prefix, part in _parts(self.module):
            own: dict[str, Any] = part._parameters
            if owners := self._owners.get(prefix):
                unseen -= 1
                for name, owner in owners.items():
                    if owner in params:
                        if name not in own:
                            raise self._changed(prefix + name)
                        replaced.append((own, name, own[name]))
                        own[name] = params[owner]
            own = part._buffers
            for name, buffer in own.items():
                if buffer is not None:
                    if (copied := copies.get(id(buffer))) is None:
                        copied = copies[id(buffer)] = buffer.clone()
                    replaced.append((own, name, buffer))
                    own[name] = copied
        if unseen:
            paths = {prefix for prefix, _ in _parts(self.module)}
            raise self._changed(next(prefix for prefix in self._owners if prefix not in paths).removesuffix("."))

    def _changed(self, path: str) -> LeafError:
        return LeafError(f"{self!r} takes the parameters of its module.", f"'{path}', which the module has no longer",
                         "call functional(module) again after a change of the module's parts")  # fmt: skip

    def _traced(self, params: dict[str, Tensor], inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        state = {slot: params[owner] for slot, owner in self._slots.items() if owner in params}
        copies: dict[int, Tensor] = {}
        for prefix, part in _parts(self.module):
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    state[prefix + name] = copies.setdefault(id(buffer), buffer.clone())
        return torch.func.functional_call(self.module, state, inputs, named, tie_weights=False)

    def _require_known(self, params: dict[str, Tensor]) -> None:
        asked = f"{self!r} takes the parameters of its module."
        for name, value in params.items():
            owner = self._slots.get(name)
            if owner is None:
                raise LeafError(asked, f"unknown name '{name}'", "pass a dict like the one that functional(module) returned")
            if owner != name:
                raise LeafError(asked, f"'{name}', which is tied to '{owner}'", f"pass it once, as '{owner}'")
            if not isinstance(value, Tensor):
                raise LeafError(asked, f"a {type(value).__name__} at '{name}'", "pass a tensor")

    def __reduce__(self) -> tuple[Any, ...]:  # locks do not pickle; a copy has one of its own
        return _remade, (self.module,)

    def __repr__(self) -> str:
        return f"functional({type(self.module).__name__})"


@contextmanager
def _counted(module: nn.Module) -> Iterator[None]:
    """Counts a run of this thread: odd while it lasts; runs within it are part of it."""
    counts, thread = _runs.setdefault(module, {}), threading.get_ident()
    if counts.get(thread, 0) % 2:
        yield
        return
    counts[thread] = counts.get(thread, 0) + 1
    try:
        yield
    finally:
        counts[thread] += 1


def runs_elsewhere(module: nn.Module | None) -> int:
    """How often other threads have begun or ended to run a module with parameters of their own, which stand in it meanwhile.

    A new number at each call while one of them does.
    """
    if module is None:
        return 0
    module = unwrapped(module, "Derivatives of a model are taken of the module itself, by its own parameters.")
    counts = [count for thread, count in list(_runs.get(module, {}).items()) if thread != threading.get_ident()]
    return next(_fresh) if any(count % 2 for count in counts) else -sum(counts)


def _lock_of(module: nn.Module) -> threading.RLock:
    with _guard:
        return _locks.setdefault(module, threading.RLock())


def _parts(module: nn.Module, prefix: str = "", found: dict[int, _Part] | None = None) -> Iterable[_Part]:
    """Every module once, with the path in front of its tensors' names: `named_modules`, several times as fast."""
    found = {} if found is None else found
    found[id(module)] = prefix, module
    for name, child in module._modules.items():
        if child is not None and id(child) not in found:
            _parts(child, f"{prefix}{name}.", found)
    return found.values()


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, part in _parts(module):
        for name, buffer in part._buffers.items():
            if buffer is not None:
                yield prefix + name, buffer


def functional(module: nn.Module) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    """A module as a pure function and its parameters.

    Args:
        module: any module; of one that `DistributedDataParallel`, `DataParallel` or `torch.compile` wraps, the module inside.

    Returns:
        ``(f, params)``: ``f(params, *inputs, **inputs)`` runs the module with these parameters and leaves it as it was.
        `params` holds the trainable parameters by name, in `named_parameters` order, detached; a tied parameter stands there
        once and serves all its places. Frozen parameters keep the module's values. Buffers are copied at each call, so that
        running statistics do not move.

    Raises:
        StructureError: not a module, or a scripted one, which runs code of its own.
        UnsupportedError: parameters that are sharded over ranks, or a wrapper that computes something else.
        LeafError: a lazy module without values; at a call, parameters that the module does not have.

    Cost: one forward pass a call.
    """
    if not isinstance(module, nn.Module) or isinstance(module, _JITTED):
        remedy = "pass the plain module (of a scripted one: the original)"
        raise StructureError("functional(module) takes an nn.Module that runs in Python.", type(module).__name__, remedy)
    module = unwrapped(module, "functional(module) runs the module itself, by its own parameters.")
    with (lock := _lock_of(module)):  # another thread may be running the module with parameters of its own
        return _functional(module, lock)


def _remade(module: nn.Module) -> FunctionalModule:
    return FunctionalModule(module, _lock_of(module))


def _functional(module: nn.Module, lock: threading.RLock) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    lazy = [name for name, t in [*module.named_parameters(), *module.named_buffers()] if nn.parameter.is_lazy(t)]
    if lazy:
        raise LeafError(
            "functional(module) needs parameters and buffers that have values.",
            f"'{lazy[0]}' is not initialized yet (a lazy module)",
            "run the module once on a batch first",
        )
    params = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    return FunctionalModule(module, lock), params


@contextmanager
def buffers_preserved(module: nn.Module | None) -> Iterator[None]:
    """Put every buffer back to the value it had, if the module's forward pass changed it."""
    if module is None:
        yield
        return
    before = [(buffer, buffer._version, buffer.clone()) for _, buffer in _buffers(module)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, value in before:
                if buffer._version != version:
                    buffer.copy_(value)
                    continue
                for now, old in zip(_numbers(buffer), _numbers(value), strict=True):
                    if not torch.equal(now, old):
                        now.data.copy_(old)  # batch norm writes its statistics past the version counter, and so does this


def _numbers(buffer: Tensor) -> list[Tensor]:
    """The dense tensors with the numbers of a buffer: of a sparse one those that it holds, of one without memory none."""
    if buffer.is_meta:
        return []
    if buffer.layout is torch.sparse_coo:
        return [buffer._indices(), buffer._values()]
    if buffer.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [buffer.crow_indices(), buffer.col_indices(), buffer.values()]
    if buffer.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [buffer.ccol_indices(), buffer.row_indices(), buffer.values()]
    return [buffer]
