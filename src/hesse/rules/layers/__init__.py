"""Layer rules, one small file for each family of autograd nodes. Importing this package registers them."""

from hesse.rules.layers import (
    batched,
    bilinear,
    convolution,
    elementwise,
    embedding,
    embedding_bag,
    indexing,
    linear,
    normalization,
    recurrent,
    repeat,
)
from hesse.rules.layers.meeting import MANY_OUTPUTS, LayerRule, Meeting, SampleAxis, layer_rules

__all__ = [
    "MANY_OUTPUTS",
    "LayerRule",
    "Meeting",
    "SampleAxis",
    "batched",
    "bilinear",
    "convolution",
    "elementwise",
    "embedding",
    "embedding_bag",
    "indexing",
    "layer_rules",
    "linear",
    "normalization",
    "recurrent",
    "repeat",
]
