"""Sparse derivatives: where entries can be, which columns share a product, and the entries from the products."""

from hesse.sparse.colored import ColoredPattern
from hesse.sparse.coloring import coloring
from hesse.sparse.pattern import Pattern

__all__ = ["ColoredPattern", "Pattern", "coloring"]
