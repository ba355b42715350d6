"""Jacobians and Gram matrices larger than memory, on disk."""
