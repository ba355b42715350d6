"""The loop in C of a greedy coloring, which SciPy has for its finite differences.

``scipy/optimize/_group_columns`` groups columns after Curtis, Powell and Reid: the first group takes every column that it can,
then the second one, and so on, which gives each column the smallest color that is free, as one pass in this order does. It is
loaded as the file that it is, since importing all of `scipy.optimize` takes longer than to color a million columns. A SciPy
without it costs speed only: `hesse.sparse.colors.columns` has the same loop in Python.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.machinery import ExtensionFileLoader, PathFinder
from importlib.util import module_from_spec
from typing import Any

import numpy as np
import scipy


@cache
def compiled_loop() -> Callable[..., Any] | None:
    """SciPy's ``group_sparse(rows, columns, indices, indptr)`` of compressed columns; None where it is not as expected."""
    try:
        spec = PathFinder.find_spec("_group_columns", [os.path.join(folder, "optimize") for folder in scipy.__path__])
        if spec is None or not isinstance(spec.loader, ExtensionFileLoader):
            return None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        loop = module.group_sparse
        ends, rows = np.array([0, 1, 2, 4], np.int32), np.array([0, 1, 0, 1], np.int32)
        expected = list(loop(2, 3, rows, ends)) == [0, 0, 1]
    except (ImportError, AttributeError, TypeError, OSError):
        return None
    return loop if expected else None
