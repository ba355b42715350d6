"""Where windows read, against PyTorch's own padding and unfolding."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from hesse.convolutions import convolution
from hesse.convolutions.geometry import PADDING_MODES
from hesse.convolutions.taps import meetings, places

from .torch_oracle import draw, randn


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_what_stands_in_the_padding(mode: str) -> None:
    for size in range(1, 6):
        for before in range(size + 1):
            for after in range(size + 1):
                if mode == "reflect" and max(before, after) >= size:
                    continue
                g = convolution(randn(1, 1, 1), (1, size), padding=[(before, after)], padding_mode=mode).geometry
                image = torch.arange(1.0, size + 1)
                expected = F.pad(image[None, None], (before, after), mode="constant" if mode == "zeros" else mode)
                assert torch.equal(g.sources(0) + 1, expected[0, 0].long())


def test_what_each_tap_reads(sweep: Callable[..., list[int]]) -> None:
    """Each axis by itself: windows of the padded axis, as `Tensor.unfold` cuts them."""
    for seed in sweep(range(200), 60):
        drawn = draw(random.Random(seed))
        g = convolution(drawn.weight, drawn.shape, **drawn.options).geometry
        for axis in range(g.ndim):
            windows = g.sources(axis).unfold(0, g.reach[axis], g.stride[axis])[:, :: g.dilation[axis]]
            assert torch.equal(g.reads(axis), windows)
            assert g.reads(axis).shape == (g.out_size[axis], g.kernel[axis])


def test_places_and_meetings_count_every_read(sweep: Callable[..., list[int]]) -> None:
    for seed in sweep(range(200), 40):
        drawn = draw(random.Random(seed))
        g = convolution(drawn.weight, drawn.shape, **drawn.options).geometry
        rows, columns, taps = places(g)
        assert len(rows) == torch.tensor([int((g.reads(axis) >= 0).sum()) for axis in range(g.ndim)]).prod()
        for part, shape in ((rows, g.out_size), (columns, g.size), (taps, g.kernel)):
            assert bool((part < torch.Size(shape).numel()).all())
        for axis in range(g.ndim):
            found = meetings(g, axis)
            counted: Counter[tuple[tuple[int, ...], int]] = Counter()
            by_window: Counter[tuple[tuple[int, ...], int]] = Counter()
            for m, window in enumerate(g.reads(axis).tolist()):
                for cell in set(window) - {-1}:
                    met = tuple(k for k, read in enumerate(window) if read == cell)
                    counted[met, cell] += 1
                    by_window[met, m] += 1
            sets = [tuple(torch.nonzero(row)[:, 0].tolist()) for row in found.taps]
            for table, expected in ((found.cells, counted), (found.windows, by_window)):
                told: Counter[tuple[tuple[int, ...], int]] = Counter()
                for place, number in torch.nonzero(table).tolist():
                    told[sets[number], place] += int(table[place, number])
                assert told == expected, str(drawn)


def test_circular() -> None:
    def is_circular(size: int, kernel: int, **options: object) -> bool:
        return convolution(randn(1, 1, kernel), (1, size), **options).geometry.is_circular  # pyright: ignore

    assert is_circular(6, 3, padding=1, padding_mode="circular")
    assert is_circular(6, 2, padding="same", padding_mode="circular")
    assert is_circular(6, 3, padding=1, padding_mode="circular", stride=2)
    assert not is_circular(7, 3, padding=1, padding_mode="circular", stride=2)
    assert not is_circular(6, 3, padding=1)
    assert not is_circular(6, 3, padding=2, padding_mode="circular")
    assert is_circular(6, 1)
    assert is_circular(6, 1, stride=2)


def test_of_one_group() -> None:
    g = convolution(randn(6, 2, 3, 2), (4, 5, 7), groups=2, stride=(1, 2)).geometry
    assert (g.one_group.in_shape, g.one_group.out_shape) == ((2, 5, 7), (3, 3, 3))
    assert g.one_group.weight_shape == (3, 2, 3, 2)
    assert (g.in_dim, g.out_dim, g.weight_shape) == (140, 54, (6, 2, 3, 2))
