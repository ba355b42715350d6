"""The embedding in a torus: one circulant product, cut to the image, is the convolution; slots are what they say."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hesse.convolutions import fields
from hesse.convolutions.square import torus_symbol
from hesse.convolutions.torus import Torus
from tests.convolutions.configurations import configuration


def test_the_circulant_cut_to_the_image_is_the_convolution(sweep: Callable[[range, int], list[int]]) -> None:
    for number in sweep(range(600), 60):
        drawn = configuration(number)
        A = drawn.operator()
        g = A.geometry
        torus, plain = Torus(g.one_group), (False,) * g.ndim
        C = torus_symbol(A, plain).flatten(0, g.ndim - 1)
        x = A.in_space.normal(2, generator=torch.Generator().manual_seed(number))
        field = fields.embed(x, torus.inputs, g.groups, torus, torus.phases)
        copies = torus.sources >= 0
        if bool(copies.any()):  # the ring holds copies of cells of the image
            values = field.index_select(-1, fields.flat(torus.inputs[torus.sources[copies]], torus, field.device))
            field = field.index_copy(-1, fields.flat(torus.in_ring[copies], torus, field.device), values)
        waves = C @ fields.spectrum(field, torus, plain)
        out = fields.from_spectrum(waves, torus, plain, x.dtype, 1)
        y = fields.extract(out, torus.outputs, g.out_shape, torus)
        scale = float(A.weight.abs().sum()) * float(x.abs().max()) + 1e-300
        assert float((y - A @ x).abs().max()) <= 1e-13 * scale, drawn


def test_slots_are_a_partition_of_the_torus(sweep: Callable[[range, int], list[int]]) -> None:
    for number in sweep(range(600), 60):
        g = configuration(number).operator().geometry
        torus = Torus(g.one_group)
        for image, ring, phases in ((torus.inputs, torus.in_ring, torus.phases), (torus.outputs, torus.out_ring, 1)):
            flat = torch.cat([s.phases * torus.cells + s.cells for s in (image, ring)])
            assert flat.sort().values.tolist() == list(range(phases * torus.cells)), number


def test_what_is_not_touched_does_not_matter(sweep: Callable[[range, int], list[int]]) -> None:
    """Numbers in untouched slots of the ring change no output of the image; inputs change no untouched output."""
    for number in sweep(range(600), 40):
        A = configuration(number).operator()
        g = A.geometry
        torus, plain = Torus(g.one_group), (False,) * g.ndim
        C = torus_symbol(A, plain).flatten(0, g.ndim - 1)
        seen, seeing = torus.touched
        ones = A.weight.new_ones(1, g.groups, g.in_channels // g.groups, len(torus.in_ring))
        field = A.weight.new_zeros(1, g.groups, g.in_channels // g.groups, torus.phases * torus.cells)
        hidden = field.index_copy(-1, fields.flat(torus.in_ring[~seen], torus, field.device), ones[..., ~seen])
        scale = 1e-13 * (float(A.weight.abs().sum()) + 1e-300)
        out = fields.from_spectrum(C @ fields.spectrum(hidden, torus, plain), torus, plain, field.dtype, 1)
        assert float(fields.extract(out, torus.outputs, g.out_shape, torus).abs().max()) <= scale, number
        image = fields.embed(A.weight.new_ones(1, *g.in_shape), torus.inputs, g.groups, torus, torus.phases)
        out = fields.from_spectrum(C @ fields.spectrum(image, torus, plain), torus, plain, field.dtype, 1)
        blind = out.index_select(-1, fields.flat(torus.out_ring[~seeing], torus, out.device))
        assert not blind.numel() or float(blind.abs().max()) <= scale, number
