"""Checks of derivatives: reverse mode against differences that share no code with it."""

from hesse.check.check_report import CheckReport, Comparison, Finding, WrongDerivativeError
from hesse.check.curve import difference_curve
from hesse.check.derivatives import assert_derivatives, check_derivatives
from hesse.check.parameters import ParameterCheck, ParameterVerdict, check_parameters

__all__ = [
    "CheckReport", "Comparison", "Finding", "ParameterCheck", "ParameterVerdict", "WrongDerivativeError", "assert_derivatives",
    "check_derivatives", "check_parameters", "difference_curve",
]  # fmt: skip
