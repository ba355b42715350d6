"""Random projections: linear maps to a few dimensions that keep inner products in expectation, made from a seed."""

from hesse.operators.projections.base import RandomProjection
from hesse.operators.projections.gaussian import GaussianProjection
from hesse.operators.projections.hadamard import HadamardProjection
from hesse.operators.projections.make import random_projection
from hesse.operators.projections.rademacher import RademacherProjection

__all__ = ["GaussianProjection", "HadamardProjection", "RademacherProjection", "RandomProjection", "random_projection"]
