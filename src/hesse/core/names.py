"""What the names of parameters say."""

from __future__ import annotations


def layer_of(name: str) -> str:
    """The module that a parameter belongs to: everything before the last dot."""
    return name.rpartition(".")[0]
