"""Checks of modules: everything that a check of a function cannot see."""
