"""Layers as pure functions: each constructor returns ``(f, params)``."""

from hesse.nn.layers.layer_normalization import LayerNormalization
from hesse.nn.layers.masked_batch_normalization import MaskedBatchNormalization
from hesse.nn.layers.soft_attention import SoftAttention

__all__ = ["LayerNormalization", "MaskedBatchNormalization", "SoftAttention"]
