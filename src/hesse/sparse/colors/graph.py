"""Graphs of patterns as lists of neighbors."""

from __future__ import annotations

import itertools

import numpy as np
import scipy.sparse

from hesse.sparse.compressed import Indices, canonical
from hesse.sparse.pattern import Pattern

Lists = list[list[int]]


def lists(pattern: Pattern) -> Lists:
    """The columns of each row, as Python lists, which Python reads fastest."""
    flat, ends = pattern.indices.tolist(), pattern.indptr.tolist()
    return [flat[start:end] for start, end in itertools.pairwise(ends)]


def without_diagonal(pattern: Pattern) -> Pattern:
    """A square pattern less the entries on its diagonal: the edges of its graph."""
    off = pattern.rows != pattern.indices
    counts = np.bincount(pattern.rows[off], minlength=pattern.shape[0])
    return Pattern.trusted(pattern.shape, np.concatenate([[0], np.cumsum(counts)]), pattern.indices[off])


def pairs_of_columns(pattern: Pattern) -> int:
    """An upper bound of the entries of `intersections`: the sum of squares of the lengths of rows."""
    return int((np.diff(pattern.indptr) ** 2).sum())


def intersections(pattern: Pattern) -> Pattern:
    """The column intersection graph: columns are neighbors if a row has entries in both.

    Args:
        pattern: any.

    Returns:
        ``[columns, columns]``, symmetric, without diagonal. Its (distance-1) colorings are the distance-2 colorings of the
        columns: Coleman and More, Estimation of sparse Jacobian matrices and graph coloring problems, SIAM J. Numer. Anal.
        1983.
    """
    ones = scipy.sparse.csr_array(pattern.ones, dtype=bool)
    product = (ones.T @ ones).tocsr()
    product.sort_indices()
    size = pattern.shape[1]
    return without_diagonal(Pattern.trusted((size, size), *canonical(product)))


def bipartite(pattern: Pattern) -> Pattern:
    """The graph whose vertices are columns, then rows, and whose edges are the entries: ``[[0, A.T], [A, 0]]``."""
    rows, columns = pattern.shape
    size = rows + columns
    ends: Indices = np.concatenate([pattern.T.indptr, pattern.indptr[1:] + pattern.nnz])
    return Pattern.trusted((size, size), ends, np.concatenate([pattern.T.indices + columns, pattern.indices]))
