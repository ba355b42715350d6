"""One cut-off for all blocks, default tolerances, and the number of threads."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from hesse.convolutions.truncation import Factors, cut, cutoff_ratio, decompose, one_thread

from .oracle import convolution, kernel


def test_cut_counts_and_measures_the_gap() -> None:
    values = torch.tensor([[8.0, 2.0], [4.0, 1e-3]], dtype=torch.float64)
    counts = torch.tensor([[1, 1], [2, 2]])
    found = cut(values, counts, 1e-2, 2)
    assert (found.norm, found.smallest, found.truncated, found.condition) == (8.0, 2.0, 2, 4.0)
    assert found.gap == pytest.approx(2000)
    assert cut(values, counts, 0.25, 2).truncated == 3  # up to the tolerance, as torch.linalg.pinv
    assert cut(values, counts, 1e-5, 2).gap == math.inf


def test_rounding_noise_is_no_gap() -> None:
    values = torch.tensor([1.0, 1e-9, 1e-16], dtype=torch.float64)
    assert cut(values, torch.ones(3, dtype=torch.int64), 1e-12, 3).gap == math.inf
    assert cut(values, torch.ones(3, dtype=torch.int64), 1e-6, 3).gap == pytest.approx(1e9)


def test_nothing_kept() -> None:
    found = cut(torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.int64), 1e-12, 3)
    assert (found.norm, found.truncated, found.gap, found.condition) == (0.0, 4, math.inf, 1.0)
    empty = torch.zeros(0, dtype=torch.float64)
    assert cut(empty, empty.to(torch.int64), 1e-12, 1).truncated == 0


def test_default_tolerance_is_that_of_torch_in_double_and_the_rounding_of_weights_in_single() -> None:
    A = convolution(kernel(2, 3, 3), (50,))
    assert cutoff_ratio(A, None) == 150 * torch.finfo(torch.float64).eps
    single = convolution(kernel(2, 3, 3, dtype=torch.float32), (50,))
    assert cutoff_ratio(single, None) == torch.finfo(torch.float32).eps
    assert cutoff_ratio(single, 0.0) == 0.0 and cutoff_ratio(A, 0.5) == 0.5


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_null_rows_of_a_block_without_rank(shape: tuple[int, int]) -> None:
    block = kernel(shape[0], 2, dtype=torch.complex128) @ kernel(2, shape[1], dtype=torch.complex128, seed=2)
    factors = decompose(block)
    for adjoint, M in ((False, block), (True, block.mH)):
        rows = factors.null_rows(1e-12, adjoint=adjoint)
        assert len(rows) == M.shape[1] - 2
        torch.testing.assert_close(rows.conj() @ rows.mT, torch.eye(len(rows)).to(rows))
        assert float((M @ rows.mT).abs().max()) < 1e-13
    assert len(Factors(*factors).null_rows(1e9)) == shape[1]


def test_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: list[int] = []

        def other() -> None:
            torch.set_num_threads(3)
            with one_thread(8):
                seen.append(torch.get_num_threads())
            seen.append(torch.get_num_threads())

        with one_thread(1000):
            assert torch.get_num_threads() == 2
        with one_thread(8):
            assert torch.get_num_threads() == 1
            worker = threading.Thread(target=other)
            worker.start()
            worker.join()
        assert torch.get_num_threads() == 2 and seen == [1, 3]
        with pytest.raises(ZeroDivisionError), one_thread(8):
            _ = 1 / 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
