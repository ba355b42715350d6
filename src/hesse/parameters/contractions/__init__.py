"""Contractions over the forms: each quantity once."""

from hesse.parameters.contractions.gram import gram
from hesse.parameters.contractions.moments import Moments, add_moments, moments
from hesse.parameters.contractions.norms import squared_norms
from hesse.parameters.contractions.pick import pick
from hesse.parameters.contractions.products import rows_times, weighted_sum
from hesse.parameters.contractions.rotated import rotated_squares
from hesse.parameters.contractions.shared_factors import SquaresOverRoots
from hesse.parameters.contractions.squares import squared_distances, summed_squares
from hesse.parameters.contractions.stacked import stack
from hesse.parameters.contractions.uses import Use, is_chained, merge, row_blocks, tensors_in

__all__ = [
    "Moments",
    "SquaresOverRoots",
    "Use",
    "add_moments",
    "gram",
    "is_chained",
    "merge",
    "moments",
    "pick",
    "rotated_squares",
    "row_blocks",
    "rows_times",
    "squared_distances",
    "squared_norms",
    "stack",
    "summed_squares",
    "tensors_in",
    "weighted_sum",
]
