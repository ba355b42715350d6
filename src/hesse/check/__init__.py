"""Checks of derivatives: reverse mode against differences that share no code with it."""

from hesse.check.curve import difference_curve
from hesse.check.parameters import ParameterCheck, ParameterVerdict, check_parameters

__all__ = ["ParameterCheck", "ParameterVerdict", "check_parameters", "difference_curve"]
