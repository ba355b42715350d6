"""What arithmetic rounds to, with TF32 and without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hesse.autodiff.rounding import TF32, machine_epsilon

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_tf32_is_allowed_for_either() -> None:
    for convolutions, products in ((True, False), (False, True), (True, True)):
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
        assert machine_epsilon(torch.float32, CUDA) == TF32 > torch.finfo(torch.float32).eps
        assert machine_epsilon(torch.complex64, CUDA) == TF32
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            assert machine_epsilon(dtype, CUDA) == torch.finfo(dtype).eps
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    assert machine_epsilon(torch.float32, CUDA) == torch.finfo(torch.float32).eps


def test_other_devices_have_none() -> None:
    torch.backends.cudnn.allow_tf32 = True
    assert machine_epsilon(torch.float32, torch.device("cpu")) == torch.finfo(torch.float32).eps
