"""Convolutions as linear operators between images."""

from hesse.convolutions import entries, questions, storage
from hesse.convolutions.certificate import ConditionWarning
from hesse.convolutions.factory import ConvolutionFactory, convolution
from hesse.convolutions.gradients import TruncationWarning
from hesse.convolutions.operator import Convolution, TransposedConvolution

__all__ = [
    "ConditionWarning",
    "Convolution",
    "ConvolutionFactory",
    "TransposedConvolution",
    "TruncationWarning",
    "convolution",
    "entries",
    "questions",
    "storage",
]
