"""Figures and images in the page."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from hesse.report.pictures import data_uri, inline_svg, png_of_image
from hesse.report.style import INK


def test_an_svg_scales_takes_the_pages_ink_and_has_ids_of_its_own() -> None:
    figure = Figure()
    figure.add_subplot().plot([1, 2], [3, 4], color=INK)
    one, two = inline_svg(figure, "one", 'a "quoted" <text>'), inline_svg(figure, "two", "b")
    head = one.split(">", 1)[0]
    assert head.startswith("<svg")
    assert "width=" not in head
    assert 'aria-label="a &quot;quoted&quot; &lt;text>"' in one
    assert INK not in one
    assert "var(--ink)" in one
    assert 'id="one-' in one
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert inline_svg(figure, "one", 'a "quoted" <text>') == one


def test_images_keep_their_pixels() -> None:
    image = torch.tensor([[[0.0, 2.0, 4.0], [4.0, 1.0, 3.0]]])
    pixels = imread(io.BytesIO(png_of_image(image)))[..., :3]
    assert pixels.shape == (64, 96, 3)
    assert np.allclose(pixels[16::32, 16::32, 0], np.array([[0, 0.5, 1], [1, 0.25, 0.75]]), atol=1 / 255)


def test_color_images_and_constant_ones() -> None:
    color = torch.zeros(3, 100, 120)
    color[1] = 1
    pixels = imread(io.BytesIO(png_of_image(color)))[..., :3]
    assert pixels.shape == (100, 120, 3)
    assert pixels[50, 60].tolist() == [0, 1, 0]
    assert png_of_image(torch.ones(1, 4, 4)).startswith(b"\x89PNG")


def test_data_uri() -> None:
    kind, encoded = data_uri(b"abc").split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(encoded) == b"abc"
