"""Memory for large results: an ordinary tensor, whatever the system makes of the request."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from hesse.core import pages

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(0,), (3, 5), (1030, 1030), (7, 1, 300_001)])
def test_an_ordinary_tensor(shape: tuple[int, ...]) -> None:
    tensor = pages.empty(shape, torch.float64, CPU)
    assert tensor.shape == shape and tensor.dtype == torch.float64 and tensor.is_contiguous()
    tensor.fill_(2.5)
    assert bool((tensor == 2.5).all())
    assert pages.empty((2,), torch.float16, torch.device("meta")).device.type == "meta"


def test_the_request_stays_inside_of_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []

    def advise(start: Any, length: Any, advice: ctypes.c_int) -> int:
        asked.append((start.value, length.value, advice.value))
        return -1  # refused: nothing depends on it

    monkeypatch.setattr(pages, "_madvise", lambda: advise)
    pages.empty((2**10,), torch.float32, CPU)
    assert asked == []  # small
    tensor = pages.empty((2**21 + 5,), torch.float32, CPU)
    ((start, length, _),) = asked
    end = tensor.data_ptr() + tensor.numel() * 4
    assert start % 4096 == 0 and length % 4096 == 0
    assert tensor.data_ptr() <= start and start + length <= end < start + length + 4096
