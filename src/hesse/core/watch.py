"""What functions read besides their arguments: modules, their options and buffers, tensors; and whether it changed.

Buffers are compared by their content, since batch normalization writes its statistics past the version counters of tensors;
parameters, and tensors that a function holds, by identity and by what a `Stamp` sees, which takes no pass over their bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from hesse.core.errors import DataError
from hesse.core.fingerprint import sample_hashes
from hesse.core.held import LONG, SIMPLE, leaves, reads_alike, values
from hesse.core.stamp import Stamp, changed, stamps_of
from hesse.core.wrapped import is_sharded, sharded_leaves

_SMALL = 2**20  # bytes of a buffer that is hashed together with others


@dataclass
class _State:
    """What some functions read, by path."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Watch:
    """Remembers what functions and modules read, and refuses to go on where it changed.

    Seen are: which module stands at each path, its mode and, of a module of torch, its options; the numbers in buffers;
    parameters; tensors, numbers, texts and small arrays that a function closes over, has as defaults or as arguments
    (`functools.partial`), or that an object holds as attributes which its code names, also in tuples, and in lists and dicts
    of at most 100 entries. Not seen are code, hooks, attributes of the user's own modules and new ones of torch's, global
    variables, what a `Stamp` does not see of parameters and tensors, what torch's normalizations and dropouts do not read in
    eval mode, and what the functions themselves change as they run.

    Args:
        **read: functions, modules and other objects, under the name by which errors call them.

    Cost: a pass over the bytes of the buffers, now and at each `check`.
    """

    def __init__(self, **read: Any) -> None:
        self._read, self._state, self._learned = read, _found(read), set[str]()
        self._stamps, self._values = _stamps(self._state.tensors), Values(**read)
        self._hashes, self._content = _hashes(self._state.buffers), _content(self._state.buffers)
        self.beside: Values | None = None  # of what else runs the same functions

    def settle(self) -> None:
        """Take what changed so far for the work of the functions themselves, which have been run once.

        Tensors and values that have changed are watched no longer: the functions write to them. Buffers that have appeared
        are watched from now on: the first run registers them.
        """
        now = _found(self._read)
        self._values.settle()
        for name in list(self._stamps):
            if self._is_other(name, now.tensors.get(name)):
                del self._stamps[name]
        self._hashes |= _hashes({name: buffer for name, buffer in now.buffers.items() if name not in self._hashes})

    @contextmanager
    def running(self, kind: str = "") -> Iterator[None]:
        """Around a run of what is watched: buffers that it registers are watched from now on, and are no change.

        Plain values that it changes are watched no longer.

        Args:
            kind: of the run. Tensors that the first run of a kind writes to or replaces are watched no longer; those that had
                changed before it are.
        """
        before, learns = self._buffer_count(), bool(kind) and kind not in self._learned
        others = self._others() if learns else set[str]()
        with self._values.running(), nullcontext() if self.beside is None else self.beside.running():
            yield
        if learns:
            self._learned.add(kind)
            written = self._others() - others
            self._stamps = {name: stamp for name, stamp in self._stamps.items() if name not in written}
        if self._buffer_count() != before:
            now = _found(self._read).buffers
            self._hashes |= _hashes({name: buffer for name, buffer in now.items() if name not in self._hashes})

    def _others(self) -> set[str]:
        now = _found(self._read).tensors
        return {name for name in self._stamps if self._is_other(name, now.get(name))}

    def _buffer_count(self) -> int:
        return sum(leaf is not None for part in self._state.modules.values() for leaf in part._buffers.values())

    def is_over(self, read: Mapping[str, Any]) -> bool:
        """Whether it watches these objects, or functions of the same code that hold the same."""
        return self._read.keys() == read.keys() and all(reads_alike(self._read[name], value) for name, value in read.items())

    def check(self, asked: str, remedy: str) -> None:
        """Refuse to go on after a change.

        Raises:
            DataError: something is not what it was; the first such thing by its path.
        """
        change = self._change(_found(self._read))
        if change:
            raise DataError(asked, change, remedy)

    def _change(self, now: _State) -> str:
        before = self._state
        if (name := _first_other(before.modules, now.modules)) is not None:
            return f"'{name}' is {_kind(now.modules.get(name))} now, and was {_kind(before.modules.get(name))}"
        options = {name: option for name, option in now.options.items() if name in before.options}
        if (name := _first_other(before.options, options)) is not None:
            found = repr(options[name]) if name in options else "no plain value"
            return f"'{name}' is {found} now, and was {before.options[name]!r}"
        for name in self._stamps:
            if self._is_other(name, now.tensors.get(name)):
                return f"'{name}' was written to or replaced"
        if change := self._values.change():
            return change
        content = _content(now.buffers)
        if content == self._content:
            return ""
        change = _change_of_buffers(self._hashes, _hashes(now.buffers))
        if not change:
            self._content = content
        return change

    def _is_other(self, name: str, now: Tensor | None) -> bool:
        before = self._state.tensors[name]
        if isinstance(before, nn.Parameter) and isinstance(now, Tensor) and not isinstance(now, nn.Parameter):
            return False  # a functional call in another thread has put its own in that place for the moment
        return now is not before or bool(changed([self._stamps[name]]))


class Values:
    """Remembers the plain values that functions and objects hold: numbers, texts, small arrays.

    Args:
        **read: as for `Watch`.
    """

    def __init__(self, **read: Any) -> None:
        self._read, self._before = read, {name: value for name, value in values(read).items() if value is not LONG}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a run of the functions: values that it changes are watched no longer."""
        before = values(self._read)
        yield
        self._keep_only(before)

    def settle(self) -> None:
        """Watch no value any more that has changed so far."""
        self._keep_only(self._before)

    def change(self) -> str:
        """The first value that is not what it was, in words; empty where there is none."""
        now = values(self._read)
        for name, value in self._before.items():
            if not _is_same(value, now.get(name)) and not (name not in now and _is_too_long(name, now)):
                return f"'{name}' is {now.get(name)!r} now, and was {value!r}"
        return ""

    def _keep_only(self, before: dict[str, Any]) -> None:
        now = values(self._read)
        self._before = {name: value for name, value in self._before.items() if _is_same(before.get(name), now.get(name))}


def _is_too_long(name: str, now: dict[str, Any]) -> bool:
    """Whether a list or dict on the way to it holds too much to be looked at."""
    while name:
        name = name.rpartition(".")[0]
        if now.get(name) is LONG:
            return True
    return False


def _found(read: Mapping[str, Any]) -> _State:
    state = _State()
    for path, leaf in leaves(read):
        if isinstance(leaf, nn.Module):
            _look_at_module(leaf, path, state)
        elif isinstance(leaf, Tensor):
            state.tensors[path] = leaf
    return state


def _is_same(before: Any, now: Any) -> bool:
    return type(before) is type(now) and [before] == [now]  # in lists: NaN is itself


def _first_other(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    if before == now:
        return None
    missing = object()
    return next(name for name in {**before, **now} if [before.get(name, missing)] != [now.get(name, missing)])


def _change_of_buffers(before: dict[str, int], now: dict[str, int]) -> str:
    """What happened to buffers of which the hashes are known; nothing is the empty string."""
    happened = {
        "other numbers in the buffers {}": [name for name in before if name in now and now[name] != before[name]],
        "missing buffers {}": [name for name in before if name not in now],
        "buffers {} that appeared": [name for name in now if name not in before],
    }
    return "; ".join(text.format(", ".join(f"'{name}'" for name in names[:3])) for text, names in happened.items() if names)


def _look_at_module(module: nn.Module, path: str, state: _State) -> None:
    sharded = {name for name, _ in sharded_leaves(module)}
    for name, part in module.named_modules(remove_duplicate=False):
        place, prefix = (f"{path}.{name}", f"{name}.") if name else (path, "")
        state.modules[place] = part
        state.options[f"{place}.training"] = part.training
        unread = _unread(part)
        if _is_of_torch(part):
            for key, option in vars(part).items():
                if key not in unread and _is_option(key, option):
                    state.options[f"{place}.{key}"] = option
        for key, leaf in part._buffers.items():
            if key not in unread and leaf is not None:
                state.buffers[f"{place}.{key}"] = leaf
        for key, leaf in part._parameters.items():
            if leaf is not None and prefix + key not in sharded:
                state.tensors[f"{place}.{key}"] = leaf
    state.buffers = {name: leaf for name, leaf in state.buffers.items() if not is_sharded(leaf)}


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _unread(module: nn.Module) -> tuple[str, ...]:
    """Options and buffers of a module of torch that its forward pass does not read in eval mode."""
    if module.training or not _is_of_torch(module):
        return ()
    if isinstance(module, _NormBase):
        return "momentum", "num_batches_tracked"
    return ("p",) if isinstance(module, _DropoutNd) else ()


def _is_option(name: str, value: Any) -> bool:
    if name.startswith("_"):
        return False
    return isinstance(value, SIMPLE) or (isinstance(value, tuple) and all(isinstance(part, SIMPLE) for part in value))


def _stamps(tensors: dict[str, Tensor]) -> dict[str, Stamp]:
    return dict(zip(tensors, stamps_of(tensors.values()), strict=True))


def _hash(tensor: Tensor) -> int:
    tensor = tensor.detach()
    return int(sample_hashes((tensor if tensor.layout is torch.strided else tensor.to_dense()).unsqueeze(0)))


def _hashes(buffers: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: _hash(buffer) for name, buffer in buffers.items() if not buffer.is_meta}


def _content(buffers: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """A few hashes for all buffers: small ones, of which a network has many, are joined before."""
    buffers = {name: buffer.detach() for name, buffer in buffers.items()}
    groups: dict[Any, list[Tensor]] = {}
    for name, buffer in buffers.items():
        if buffer.is_meta:
            continue
        small = buffer.layout is torch.strided and buffer.nbytes <= _SMALL
        groups.setdefault((buffer.dtype, buffer.device) if small else name, []).append(buffer)
    joined = (part[0] if len(part) == 1 else torch.cat([buffer.flatten() for buffer in part]) for part in groups.values())
    return (*((name, buffer.shape, buffer.is_meta) for name, buffer in buffers.items()), *map(_hash, joined))


def _kind(part: nn.Module | None) -> str:
    return "missing" if part is None else f"a {type(part).__name__}"
