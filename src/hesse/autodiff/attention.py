"""Fused attention kernels have neither forward mode nor a second derivative; their plain form has both."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_guard = threading.Lock()
_switched = ExitStack()
_users = 0


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Within this context attention runs through ops that can be differentiated again; the switches are put back after it.

    PyTorch's switches belong to the process, so the first thread to enter sets them and the last to leave puts them back.
    """
    global _users
    with _guard:
        if _users == 0:
            _switched.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            _switched.enter_context(sdpa_kernel(SDPBackend.MATH))
        _users += 1
    try:
        yield
    finally:
        with _guard:
            _users -= 1
            if _users == 0:
                _switched.close()
