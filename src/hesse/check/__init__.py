"""Checks: derivatives against differences that share no code with them, modules and operators against what they promise."""

from hesse.check.check_report import CheckReport, Comparison, Finding, WrongDerivativeError
from hesse.check.curve import difference_curve
from hesse.check.derivatives import assert_derivatives, check_derivatives
from hesse.check.isolated import isolated
from hesse.check.module import assert_module, check_module
from hesse.check.operator import assert_operator, check_operator
from hesse.check.parameters import ParameterCheck, ParameterVerdict, check_parameters

__all__ = [
    "CheckReport", "Comparison", "Finding", "ParameterCheck", "ParameterVerdict", "WrongDerivativeError", "assert_derivatives",
    "assert_module", "assert_operator", "check_derivatives", "check_module", "check_operator", "check_parameters",
    "difference_curve", "isolated",
]  # fmt: skip
