"""Which line of the user's code runs an op? Frames of PyTorch, hesse, NumPy and the standard library are skipped; an op of a
backward pass is led back to the line of the forward op that it differentiates.

Autograd numbers its nodes in the order of creation, by a counter of each thread. A dispatch mode sees an op right after
autograd made its node, so the numbers that appeared since the op before belong to this one; inside a backward pass autograd
names the running node, and its number leads back to the line. (`torch.fx` finds forward ops by the same two numbers.)

Few lines are ever asked for. `SourceMap.spot` keeps the stack as PyTorch's own profiler captures it, a code object and an
offset for each frame, and looks at the frames only when somebody wants to know.
"""

from __future__ import annotations

import functools
import linecache
import os
import sys
import threading
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch._C._profiler import CapturedTraceback, gather_traceback, symbolize_tracebacks

Phase = Literal["forward", "backward"]

_USER, _LIBRARY, _AUTOGRAD = range(3)
_GENERATED = ("<frozen", "<eval_with_key", "<attrs", "<@", "<torch", "<__array_function__", "<hesse")
_ROOTS = (torch.__file__, os.path.dirname(__file__), np.__file__, os.__file__)  # torch, hesse, numpy, the standard library
_FOLDERS = tuple(os.path.dirname(os.path.abspath(path)) + os.sep for path in _ROOTS)
_INSTALLED = ("site-packages", "dist-packages")
_PREFIX = os.path.join(sys.prefix, "")
_DISPATCHERS = ("__torch_dispatch__", "__torch_function__")
_ENGINE, _SEEDS = "_engine_run_backward", "_make_grads"
_CHECKPOINT = os.path.join("torch", "utils", "checkpoint.py")
_COMPILED = os.path.join("torch", "_dynamo", "eval_frame.py")
_MOST_NODES = 16
_MOST_PLACES = 100_000
_kinds: dict[str, int] = {}
_sequence, _node, _pass = torch.autograd._get_sequence_nr, torch._C._current_autograd_node, torch._C._current_graph_task_id


class Frame(NamedTuple):
    """A line of the user's code: the file, the line's number (from 1) and the function's qualified name."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


class Place(NamedTuple):
    """Where an op comes from.

    Attributes:
        source: the user's line, or None where no user's code is on the stack.
        phase: "backward" within a pass of autograd's engine.
        stack: the user's frames, innermost first; only ``(source,)`` unless stacks were asked for.
        order: 0 for an op of the forward computation (a checkpoint's second run of it too), 1 for an op of its backward pass, 2
            of that one's (double backward), and so on.
        module: what `SourceMap.module` was when the op ran; for an op of a backward pass, when its forward op did.
        region: the function compiled with `torch.compile` in which the op ran (eagerly); empty where none, or no stacks are
            kept.
    """

    source: Frame | None
    phase: Phase
    stack: tuple[Frame, ...]
    order: int = 0
    module: str = ""
    region: str = ""


def _kind(filename: str) -> int:
    """Whose code a file is; remembered by the name as code objects have it."""
    kind = _LIBRARY
    if not filename.startswith(_GENERATED):
        path = os.path.abspath(filename)
        inside = next((folder for folder in _FOLDERS if path.startswith(folder)), None)
        installed = inside is not None and path[len(inside) :].startswith(_INSTALLED)
        kind = _USER if filename.startswith("<") or inside is None or installed else _LIBRARY
        if path.startswith(os.path.join(_FOLDERS[0], "autograd", "")):
            kind = _AUTOGRAD
    _kinds[filename] = kind
    return kind


def _kind_of(frame: Frame) -> int:
    kind = _kinds.get(frame.file)
    if kind is None:
        kind = _kind(frame.file)
    return _LIBRARY if kind == _USER and frame.function.rpartition(".")[2] in _DISPATCHERS else kind


def _named(frame: FrameType) -> Frame:
    return Frame(frame.f_code.co_filename, frame.f_lineno or frame.f_code.co_firstlineno, frame.f_code.co_qualname)


def _levels(frame: FrameType | None) -> Iterator[Frame]:
    """A frame and those around it."""
    while frame is not None:
        yield _named(frame)
        frame = frame.f_back


def _users(frames: Iterable[Frame]) -> Iterator[Frame]:
    return (frame for frame in frames if _kind_of(frame) == _USER)


def _callers(frames: Iterable[Frame]) -> tuple[Frame, ...]:
    """The user's frames, innermost first, without what installed packages (a test runner, a command) have around them."""
    frames = tuple(_users(frames))
    own = [index for index, found in enumerate(frames)
           if not (found.file.startswith("<") or os.path.abspath(found.file).startswith(_PREFIX))]  # fmt: skip
    return frames[: own[-1] + 1 if own else 0]


def user_frame() -> Frame | None:
    """The innermost frame of the user's code on this thread's Python stack.

    Modules of `torch.nn` are library: their line is the user's call of the module.

    Returns:
        ``(file, line, function)``, or None in a thread without user's code (autograd's threads for GPUs).
    """
    return next(_users(_levels(sys._getframe(1))), None)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the innermost line of the user's code."""
    frame = user_frame()
    warnings.warn_explicit(message, category, *(frame[:2] if frame is not None else ("<unknown>", 1)))


def user_stack() -> tuple[Frame, ...]:
    """All frames of the user's code on this thread's Python stack, innermost first."""
    return _callers(_levels(sys._getframe(1)))


def _innermost(frame: FrameType | None, in_backward: bool) -> tuple[FrameType | None, bool, bool]:
    """The innermost user's frame; whether autograd's engine runs it (only looked for in a backward pass), and whether autograd
    makes the cotangent of one (`torch.ones_like` of the result) for it."""
    entered = seeds = False
    known = _kinds.get
    while frame is not None:
        code = frame.f_code
        kind = known(code.co_filename)
        if kind is None:
            kind = _kind(code.co_filename)
        if kind == _USER and code.co_name not in _DISPATCHERS:
            break
        if kind == _AUTOGRAD:
            entered |= in_backward and code.co_name == _ENGINE
            seeds |= code.co_name == _SEEDS
        frame = frame.f_back
    return frame, entered, seeds


class Spot:
    """The stack of an op of a forward computation, to be looked at later.

    Args:
        module: as for `Place`.
    """

    __slots__ = ("_module", "_place", "_trace")

    def __init__(self, module: str) -> None:
        self._trace: CapturedTraceback | None = gather_traceback(True, False, False)
        self._module = module
        self._place: Place | None = None

    @property
    def place(self) -> Place:
        """What it comes to, with the stack of the user's frames."""
        if self._place is None:
            levels: list[Any] = [] if self._trace is None else list(symbolize_tracebacks([self._trace])[0])
            frames = [Frame(level["filename"], level["line"], level["name"]) for level in levels]
            first = next((number for number, frame in enumerate(frames) if _kind_of(frame) == _USER), len(frames))
            seeds = any(_kind_of(frame) == _AUTOGRAD and frame.function == _SEEDS for frame in frames[:first])
            source = _qualified(frames[first]) if first < len(frames) else None
            around = tuple(map(_qualified, _callers(frames[first + 1 :])))
            stack = () if source is None else (source, *around)
            phase: Phase = "backward" if seeds else "forward"
            self._place = Place(source, phase, stack, int(seeds), self._module, _region(frames[first:]))
            self._trace = None
        return self._place


def place_of(where: Spot | Place) -> Place:
    """A place that may have to be looked up first."""
    return where.place if isinstance(where, Spot) else where


def _qualified(frame: Frame) -> Frame:
    """A frame with the qualified name of its function, where the source of the file is at hand."""
    for code in _functions(frame.file):
        if code.co_name == frame.function and any(line == frame.line for _, _, line in code.co_lines()):
            return frame._replace(function=code.co_qualname)
    return frame


@functools.lru_cache(maxsize=32)
def _functions(file: str) -> tuple[CodeType, ...]:
    """The code of all functions in a file."""
    try:
        found = [compile("".join(linecache.getlines(file)), file, "exec", dont_inherit=True)]
    except (SyntaxError, ValueError):
        return ()
    for code in found:
        found += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return tuple(found)


@dataclass
class _Thread:
    """What a thread has done: the number of its next autograd node, and the places of its nodes: one for the numbers from
    `lowest` to below `above`, in ascending order; the stack around its latest op, and that op's place."""

    upcoming: int
    around: tuple[Any, tuple[Frame, ...], str] = (None, (), "")
    latest: tuple[Any, Place] = (None, Place(None, "forward", ()))
    lowest: list[int] = field(default_factory=list)
    above: list[int] = field(default_factory=list)
    places: list[Spot | Place] = field(default_factory=list)

    def note(self, where: Spot | Place, now: int) -> None:
        """Lead the nodes that were made since the last op to a place."""
        self.lowest.append(max(self.upcoming, now - _MOST_NODES))
        self.above.append(now)
        self.places.append(where)
        self.upcoming = now
        if len(self.places) > _MOST_PLACES:
            for kept in (self.lowest, self.above, self.places):
                del kept[: _MOST_PLACES // 2]

    def maker(self, number: int, earlier: bool) -> Place | None:
        """The place of the op before which a node was found, or of the one that made nodes before that."""
        index = bisect_right(self.above, number)
        if index == len(self.above) or number < self.lowest[index]:
            return None
        return place_of(self.places[index - 1 if earlier and index else index])


class SourceMap:
    """Leads each op that a dispatch mode sees to a line of the user's code.

    Call `locate`, `place` or `spot` once for every op, below autograd, before the op runs. An op of a backward pass, of
    whatever order, has the line of the forward op; where the user's code itself runs in the pass (a custom function's backward,
    a hook, a checkpoint) it has that code's line; where the forward op was not seen, the line that started the pass. Threads
    are kept apart.

    Args:
        stacks: also keep every op's whole stack of the user's frames.

    Attributes:
        module: whatever its owner writes there to be kept with the ops that follow.

    Cost: a few microseconds an op; a spot one, and a kilobyte for each op that makes an autograd node.
    """

    def __init__(self, *, stacks: bool = False) -> None:
        self.stacks, self.module = stacks, ""
        self._own = threading.local()  # not by the threads' identifiers, which are given again to those that come later
        self._own.thread = _Thread(_sequence())
        self._threads = [self._own.thread]

    def locate(self) -> tuple[Frame | None, Phase]:
        """The ``(source, phase)`` of the op being dispatched; see `place`."""
        found = self._place(sys._getframe(1))
        return found.source, found.phase

    def place(self) -> Place:
        """The place of the op being dispatched, with the stack of the user's frames."""
        return self._place(sys._getframe(1))

    def spot(self) -> Spot | Place:
        """The place of the op being dispatched, to be looked up when somebody asks for it."""
        if _node() is not None or _pass() != -1:
            return self._place(sys._getframe(1))
        where, now, thread = Spot(self.module), _sequence(), getattr(self._own, "thread", None)
        if thread is None or now != thread.upcoming:
            (thread or self._thread(now)).note(where, now)
        return where

    def note(self) -> None:
        """Lead the autograd nodes that were made for the op being dispatched to its line; nothing where there are none."""
        if not self.is_current:
            self.spot()

    @property
    def is_current(self) -> bool:
        """Whether this thread has made no autograd node since its last op: then the place of an op need not be asked for."""
        thread = getattr(self._own, "thread", None)
        return thread is not None and thread.upcoming == _sequence()

    def _thread(self, now: int) -> _Thread:
        """What this thread has done."""
        thread = getattr(self._own, "thread", None)
        if thread is None:
            thread = self._own.thread = _Thread(now - 1)
            self._threads.append(thread)
        return thread

    def _place(self, frame: FrameType | None) -> Place:
        node, now = _node(), _sequence()
        in_backward = node is not None or _pass() != -1
        thread = self._thread(now)
        found, entered, seeds = _innermost(frame, in_backward)
        place = None
        if in_backward and (entered or found is None) and node is not None:
            place = self._forward_of(node, thread, found is not None)
        if place is None:
            place = self._seen(thread, found, "backward" if in_backward or seeds else "forward", in_backward)
        if now > thread.upcoming:
            thread.note(place, now)
        return place

    def _seen(self, thread: _Thread, frame: FrameType | None, phase: Phase, in_backward: bool) -> Place:
        """The place of the user's frame; the same object as long as the op's line stays the same."""
        if frame is None:
            return Place(None, phase, (), int(phase == "backward"), self.module)
        caller = frame.f_back
        above = None if caller is None else caller.f_back
        around = (
            id(frame), frame.f_code, id(caller), 0 if caller is None else caller.f_lasti, id(above),
            0 if above is None else above.f_lasti,
        )  # fmt: skip
        key = (frame.f_lasti, phase, in_backward, self.module)
        if thread.around[0] != around:
            thread.around = (around, _callers(_levels(caller)), _region(_levels(frame))) if self.stacks else (around, (), "")
        elif thread.latest[0] == key:
            return thread.latest[1]
        order = int(phase == "backward" and not (in_backward and _recomputed(frame)))
        source = _named(frame)
        place = Place(source, phase, (source, *thread.around[1]), order, self.module, thread.around[2])
        thread.latest = key, place
        return place

    def _forward_of(self, node: Any, here: _Thread, own: bool) -> Place | None:
        """The place of the op that made this node, looked for first among the thread's own nodes, or last (a thread of
        autograd's runs what others made). An in-place op on a view makes its node only after it was dispatched."""
        number, earlier = node._sequence_nr(), node.name().endswith("CopySlices")
        others = [thread for thread in list(self._threads) if thread is not here]
        for thread in (here, *others) if own else (*others, here):
            found = thread.maker(number, earlier)
            if found is not None:
                return Place(found.source, "backward", found.stack, found.order + 1, found.module, found.region)
        return None


def _recomputed(frame: FrameType | None) -> bool:
    """Whether a checkpoint runs the code of a forward computation again for a backward pass."""
    while frame is not None and frame.f_code.co_name != _ENGINE:
        if frame.f_code.co_filename.endswith(_CHECKPOINT):
            return True
        frame = frame.f_back
    return False


def _region(frames: Iterable[Frame]) -> str:
    """The outermost function of a stack that was compiled with `torch.compile`."""
    name, inner = "", ""
    if "torch._dynamo" in sys.modules:
        for frame in frames:
            if _kind_of(frame) == _USER:
                inner = frame.function
            elif frame.file.endswith(_COMPILED) and inner:
                name = inner
    return name
