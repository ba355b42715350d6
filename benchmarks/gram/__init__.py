"""Gram matrices of per-sample gradients too many to be held."""
