"""Work beside a run that is being recorded, or within it and without Python of the user's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from hesse.autodiff.dispatching import LightMode


@contextmanager
def unrecorded() -> Iterator[None]:
    """Within this context no mode of this thread sees an operation; what is computed here is not part of any record."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


@contextmanager
def unwatched() -> Iterator[None]:
    """Within this context, in which no code of the user's may run, a record takes operations and does not watch Python.

    That halves the time of recording a batched product.
    """
    watcher = sys.getprofile()
    if watcher is not None and not callable(watcher):  # one written in C, which could not be put back
        yield
        return
    sys.setprofile(None)
    try:
        with torch._C.DisableTorchFunction():
            yield
    finally:
        sys.setprofile(watcher)


def note_irregular(reason: str, *, lasting: bool = False) -> None:
    """Tell whoever records this thread that the run is not like later ones of the same program.

    Args:
        reason: what it does: plans, checks.
        lasting: whether every run may; if not, the next one is recorded instead.
    """
    if torch._C._len_torch_dispatch_stack():
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, LightMode):
                mode.note_irregular(reason, lasting=lasting)
