"""Receptive-field convolutions: any function of pixel and weight, reduced over each window."""

from hesse.nn.receptive_field.module import ReceptiveFieldConv, ReceptiveFieldConv1d, ReceptiveFieldConv2d, ReceptiveFieldConv3d

__all__ = ["ReceptiveFieldConv", "ReceptiveFieldConv1d", "ReceptiveFieldConv2d", "ReceptiveFieldConv3d"]
