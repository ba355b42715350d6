"""Fused kernels whose further derivatives are missing: attention has one derivative, recurrent layers no forward mode
(oneDNN) or one derivative (cuDNN). Their plain forms have all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

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


FUSED_RECURRENCES = {"MkldnnRnnLayerBackward0", "CudnnRnnBackward0"}
"""Nodes of fused recurrent layers."""


@contextmanager
def plain_recurrences() -> Iterator[None]:
    """Within this context recurrent layers run step by step (and convolutions without oneDNN); the switches are put back."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def with_plain_recurrences(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function whose recurrent layers run step by step."""

    def plain(x: Any) -> Any:
        with plain_recurrences():
            return f(x)

    return plain
