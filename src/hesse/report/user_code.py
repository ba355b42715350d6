"""The user's code raised: whose exception it was, and a traceback that shows their lines only."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hesse.core.errors import HesseError

_HESSE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep


class UserCodeError(Exception):
    """The user's function, model, loss or data raised.

    Attributes:
        doing: what hesse had asked of it, ``calling lenet()``.
        original: the exception.
    """

    def __init__(self, doing: str, original: BaseException) -> None:
        self.doing, self.original = doing, original
        super().__init__(f"{doing}: {type(original).__name__}: {original}")

    @property
    def traceback(self) -> str:
        """The original's traceback from the user's first line on, without the frames of hesse that led there."""
        shown = traceback.TracebackException.from_exception(self.original)
        _forget_frames(shown)
        return "".join(shown.format())


@contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Whatever is raised inside is the user's: it leaves as `UserCodeError`."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a script that exits while it is loaded
        raise UserCodeError(doing, error) from error


@contextmanager
def perhaps_user_code(doing: str) -> Iterator[None]:
    """What is raised inside leaves as `UserCodeError` if a line of the user's was running, else as it is."""
    try:
        yield
    except HesseError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if any(not _is_machinery(frame.filename) for frame in frames):
            raise UserCodeError(doing, error) from error
        raise


def _is_machinery(filename: str) -> bool:
    installed = f"{os.sep}site-packages{os.sep}" in filename or filename.startswith("<frozen ")
    standard = filename.startswith(os.path.dirname(os.__file__) + os.sep)
    return filename.startswith((_HESSE, _TORCH)) or installed or standard


def _forget_frames(shown: traceback.TracebackException) -> None:
    frames = list(shown.stack)
    first = next((i for i, frame in enumerate(frames) if not _is_machinery(frame.filename)), None)
    kept = [f for f in frames if not f.filename.startswith((_HESSE, "<frozen "))] if first is None else frames[first:]
    shown.stack = traceback.StackSummary.from_list(kept)
    for linked in (shown.__cause__, shown.__context__):
        if linked is not None:
            _forget_frames(linked)
