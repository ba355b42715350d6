"""Tests of Jacobians on disk."""
