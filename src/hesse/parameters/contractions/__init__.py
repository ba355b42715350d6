"""Contractions over the forms: each quantity once."""

from hesse.parameters.contractions.gram import gram
from hesse.parameters.contractions.norms import squared_norms
from hesse.parameters.contractions.products import rows_times, weighted_sum
from hesse.parameters.contractions.squares import summed_squares
from hesse.parameters.contractions.uses import Use, flat_rows, in_cache, merge, tensors_in

__all__ = [
    "Use",
    "flat_rows",
    "gram",
    "in_cache",
    "merge",
    "rows_times",
    "squared_norms",
    "summed_squares",
    "tensors_in",
    "weighted_sum",
]
