"""Linear operators between spaces of named trees."""

from hesse.operators.algebra import Composed, Congruence, Conjugate, Scaled, Sum
from hesse.operators.average import Average, average
from hesse.operators.base import FlatOperator, LinearOperator, Tag
from hesse.operators.blocks import BlockDiagonal
from hesse.operators.dense import Dense
from hesse.operators.diagonal import Diagonal
from hesse.operators.function import Function
from hesse.operators.identity import Identity, identity
from hesse.operators.kronecker import Kronecker
from hesse.operators.low_rank import LowRank
from hesse.operators.restriction import DiagonalBlocks, Restriction, block_diagonal, restrict
from hesse.operators.sparse import Sparse
from hesse.operators.spread import Spread
from hesse.operators.storage import load, save, storable

__all__ = [
    "Average",
    "BlockDiagonal",
    "Composed",
    "Congruence",
    "Conjugate",
    "Dense",
    "Diagonal",
    "DiagonalBlocks",
    "FlatOperator",
    "Function",
    "Identity",
    "Kronecker",
    "LinearOperator",
    "LowRank",
    "Restriction",
    "Scaled",
    "Sparse",
    "Spread",
    "Sum",
    "Tag",
    "average",
    "block_diagonal",
    "identity",
    "load",
    "restrict",
    "save",
    "storable",
]
