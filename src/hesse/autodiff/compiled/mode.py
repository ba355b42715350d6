"""How gradient functions run where they do not say it themselves."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Literal, get_args

from hesse.core.errors import StructureError

Mode = Literal["off", "replay", "native"]


class _State(threading.local):
    mode: Mode = "off"


_state = _State()


class CompileNotice(UserWarning):
    """A compiled function runs directly, or is replayed instead of compiled; the text says why."""


def default_mode() -> Mode:
    """The mode that `compiling` set in this thread; "off" at first."""
    return _state.mode


def require_mode(mode: str, asked: str, *, option: str = "compile") -> None:
    """Refuse what is no mode.

    Args:
        mode: what was given.
        asked: of hesse, as errors begin.
        option: what the caller calls it.

    Raises:
        StructureError: naming the modes.
    """
    if mode not in get_args(Mode):
        raise StructureError(asked, f"{option}={mode!r}", f"choose one of {', '.join(repr(m) for m in get_args(Mode))}")


class compiling:  # noqa: N801 - called like a function, as torch.set_grad_enabled
    """Set how gradient functions run that were made without `compile=`, in this thread.

    As a plain call it holds until the next; ``with hesse.compiling("replay"):`` puts back what was before.

    Args:
        mode: "off": each call runs the function itself. "replay": the first call of a kind is recorded, later ones replay its
            operations, which needs no compiler. "native": the recorded operations are compiled.

    Raises:
        StructureError: another mode.
    """

    def __init__(self, mode: Mode) -> None:
        require_mode(mode, "compiling(mode) sets how gradient functions run.", option="mode")
        self._mode: Mode = mode
        self._before: list[Mode] = [default_mode()]
        self._fresh = True
        _state.mode = mode

    def __enter__(self) -> compiling:
        """Hold the mode until the end of the block."""
        if not self._fresh:
            self._before.append(default_mode())
            _state.mode = self._mode
        self._fresh = False
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Put back the mode that was set before."""
        _state.mode = self._before.pop()
