"""Losses as functions of a prediction and a target."""

from hesse.nn.losses.binary import binary_cross_entropy, log_bce
from hesse.nn.losses.classes import cross_entropy, log_multinomial
from hesse.nn.losses.explain import ZeroGradient, explain_zero_gradient
from hesse.nn.losses.interval import interval
from hesse.nn.losses.least_squares import least_squares
from hesse.nn.losses.margin import margin

__all__ = [
    "ZeroGradient",
    "binary_cross_entropy",
    "cross_entropy",
    "explain_zero_gradient",
    "interval",
    "least_squares",
    "log_bce",
    "log_multinomial",
    "margin",
]
