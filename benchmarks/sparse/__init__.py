"""Sparse derivatives: detection, coloring and evaluation beside asdex and dense derivatives."""
