"""What ran: the code objects and C functions of one run, seen by `sys.setprofile` on this thread."""

from __future__ import annotations

import gc
import os
import sys
from types import CodeType, FrameType
from typing import Any

from hesse.autodiff.compiled.state_codes import kind_of_code, names_literal
from hesse.autodiff.compiled.state_purity import impurity, library_impurity, python_impurity, sets_random_state
from hesse.autodiff.compiled.unrecordable import Unrecordable

_IMPORT, _IMPORTER = "_find_and_load", "<frozen importlib._bootstrap>"
_WRAPPERS = (f"{os.sep}torch{os.sep}_compile.py", f"{os.sep}_dynamo{os.sep}eval_frame.py")
_LOOKED_AT = ("user", "stdlib", "torch")
_BY_NAME = frozenset({"getattr", "hasattr"})


def _wraps(frame: FrameType) -> bool:
    """Whether a frame only hides a function from the compiler of PyTorch, as the one of `torch.manual_seed` does."""
    code = frame.f_code
    return code.co_filename.endswith(_WRAPPERS) and kind_of_code(code, frame.f_globals) in ("torch", "engine")


class Watch:
    """Collects what runs between `start` and `stop` on this thread.

    `codes` maps `id(code)` to (code, its globals, kind of its file); `refusal` is the first impure thing that user code did;
    `wide` says that attributes were read by names that do not stand in the code; `reseeds`, that some code, a library's or the
    user's, set the state of a random generator.
    """

    def __init__(self) -> None:
        self.codes: dict[int, tuple[CodeType, dict[str, Any], str]] = {}
        self.refusal: str | None = None
        self.wide = False
        self.reseeds = False
        self._impure: dict[int, str] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._previous: Any = None
        self._importing = 0
        self._collects = False

    def start(self) -> None:
        """Installs the watch.

        Raises:
            Unrecordable: another profiler is running that could not be put back.
        """
        previous = sys.getprofile()
        if previous is not None and not callable(previous):
            raise Unrecordable("a profiler is running on this thread, so that what the function reads cannot be watched")
        self._previous = previous
        self._collects = gc.isenabled()
        gc.disable()  # finalizers and callbacks of a collection are none of the function's
        sys.setprofile(self._event)

    def stop(self) -> None:
        """Puts the previous profiler back."""
        sys.setprofile(self._previous)
        if self._collects:
            gc.enable()

    def ran(self, code: CodeType) -> bool:
        """Whether a code object was executed.

        Args:
            code: a code object.

        Returns:
            True if a frame of it ran during the watch.
        """
        return id(code) in self.codes

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":  # most events by far, and most of them in code that is not looked at
            known = self.codes.get(id(frame.f_code))
            if self._importing or (known is not None and known[2] not in _LOOKED_AT):
                return
            self._c_called(frame, argument)
            return
        if event == "c_return":
            return
        if frame.f_code.co_name == _IMPORT and frame.f_code.co_filename == _IMPORTER:
            self._importing += {"call": 1, "return": -1}.get(event, 0)
        if self._importing:  # a module's own code runs once, and what is read from it afterwards is seen there
            return
        if event == "call":
            code = frame.f_code
            if id(code) not in self.codes:
                kind = kind_of_code(code, frame.f_globals)
                self.codes[id(code)] = (code, frame.f_globals, kind)
                self.reseeds |= kind == "torch" and sets_random_state(code.co_filename, code.co_name)
                if kind in ("torch", "stdlib") and (reason := python_impurity(code.co_filename, code.co_name)) is not None:
                    self._impure[id(code)] = reason
            if id(code) in self._impure:
                self._torch_called(self._impure[id(code)], frame)

    def _torch_called(self, reason: str, frame: FrameType) -> None:
        caller = frame.f_back
        while caller is not None and _wraps(caller):
            caller = caller.f_back
        while caller is not None and kind_of_code(caller.f_code, caller.f_globals) == "torch":
            caller = caller.f_back
        if caller is not None and kind_of_code(caller.f_code, caller.f_globals) == "user":
            self._refuse(reason, caller)

    def _c_called(self, frame: FrameType, function: Any) -> None:
        code = frame.f_code
        known = self.codes.get(id(code))
        kind = kind_of_code(code, frame.f_globals) if known is None else known[2]
        if kind not in _LOOKED_AT:
            return
        name = function.__name__
        key = (id(code), frame.f_lasti, name, type(getattr(function, "__self__", None)))
        if key in self._seen:
            return
        self._seen.add(key)
        if name in _BY_NAME:
            self._read_by_name(frame, kind)
        elif kind == "user":
            self._judge(impurity(function), frame)
        elif kind == "stdlib" and (reason := library_impurity(function)) is not None:
            caller = frame.f_back
            while caller is not None and kind_of_code(caller.f_code, caller.f_globals) == "stdlib":
                caller = caller.f_back
            if caller is not None and kind_of_code(caller.f_code, caller.f_globals) == "user":
                self._judge(reason, caller)
            else:
                self._seen.discard(key)

    def _read_by_name(self, frame: FrameType, kind: str) -> None:
        code = frame.f_code
        layers = f"{os.sep}torch{os.sep}nn{os.sep}" in code.co_filename
        if (kind != "torch" or layers) and not names_literal(code, frame.f_lasti):
            self.wide = True

    def _judge(self, reason: str | None, frame: FrameType) -> None:
        if reason == "wide":
            self.wide = True
        elif reason is not None:
            self._refuse(reason, frame)

    def _refuse(self, reason: str, frame: FrameType) -> None:
        if self.refusal is None:
            code = frame.f_code
            self.refusal = f"{code.co_name} {reason} ({code.co_filename}:{frame.f_lineno})"
