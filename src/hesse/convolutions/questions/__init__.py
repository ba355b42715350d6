"""Rules by which the questions of `hesse.linalg` are answered for convolutions, without their matrix."""

from hesse.convolutions.questions import determinant, differentiable, factor, pinv, rank, solutions, spectrum

__all__ = ["determinant", "differentiable", "factor", "pinv", "rank", "solutions", "spectrum"]
