"""Layer rules, one small file for each family of autograd nodes. Importing this package registers them."""

from hesse.rules.layers import convolution, elementwise, embedding, linear, normalization
from hesse.rules.layers.meeting import LayerRule, Meeting, SampleAxis, layer_rules

__all__ = [
    "LayerRule",
    "Meeting",
    "SampleAxis",
    "convolution",
    "elementwise",
    "embedding",
    "layer_rules",
    "linear",
    "normalization",
]
