"""Laws of operators, modules and functions, shipped for the tests of your own."""

from hesse.check.operator import BrokenLawError
from hesse.check.operators.run import OPERATOR_LAWS
from hesse.testing.checker import Checker
from hesse.testing.laws import Law, function_laws, module_laws, operator_laws, parametrize_laws

__all__ = [
    "OPERATOR_LAWS",
    "BrokenLawError",
    "Checker",
    "Law",
    "function_laws",
    "module_laws",
    "operator_laws",
    "parametrize_laws",
]
