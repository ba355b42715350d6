"""Colorings of the graphs of matrices: which columns, rows or unknowns may share a product."""
