"""Checks of linear operators: their laws, one group a file."""
