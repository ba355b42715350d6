"""Patterns and colorings beside the peers."""
