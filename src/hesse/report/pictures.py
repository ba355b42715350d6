"""Figures and images in the form in which one HTML file can hold them."""

from __future__ import annotations

import base64
import io
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor

from hesse.report.style import GRID, INK

_PICTURE_SIDE = 96
_DOTS_PER_INCH = 220


def inline_svg(figure: Figure, key: str, description: str) -> str:
    """A figure as an ``<svg>`` element that scales with the page and takes its colors and font from it.

    Args:
        figure: a matplotlib figure.
        key: makes the ids of this figure differ from those of the others on the page.
        description: what a screen reader says.
    """
    target = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    svg = svg.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    svg = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font: \1 var(--sans)", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{_escape(description)}">{rest}'


def png_of_figure(figure: Figure) -> bytes:
    """A figure as PNG on white."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": None})
    return target.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG as the address of an ``<img>``."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def png_of_image(image: Tensor) -> bytes:
    """An image ``[C, H, W]`` with C = 1 or 3 as PNG, its own range stretched to black and white, enlarged if tiny."""
    pixels = image.detach().double().cpu()
    low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / (high - low).clamp(min=1e-12)
    factor = max(_PICTURE_SIDE // max(pixels.shape[1:]), 1)
    pixels = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2).expand(3, -1, -1)
    target = io.BytesIO()
    imsave(target, np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), format="png")
    return target.getvalue()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
