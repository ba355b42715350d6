"""The parameter Jacobian: contractions over the forms that capture finds."""

from hesse.parameters.compile_rows import compile_rows
from hesse.parameters.data_jacobian import DataJacobian
from hesse.parameters.gram_blocks import Block
from hesse.parameters.gram_plan import GramPlan, Task
from hesse.parameters.jacobian import ParameterJacobian
from hesse.parameters.kernel import TangentKernel, ntk
from hesse.parameters.make import parameter_jacobian
from hesse.parameters.storing.matrix import StoredMatrix, open_zarr

__all__ = [
    "Block",
    "DataJacobian",
    "GramPlan",
    "ParameterJacobian",
    "StoredMatrix",
    "TangentKernel",
    "Task",
    "compile_rows",
    "ntk",
    "open_zarr",
    "parameter_jacobian",
]
