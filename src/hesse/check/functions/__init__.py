"""Checks of functions: derivatives against differences, comparison by comparison."""
