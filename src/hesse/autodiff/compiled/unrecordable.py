"""Why a function cannot be replayed; it then runs directly."""

from __future__ import annotations


class Unrecordable(Exception):
    """A function does something that a recorded graph cannot repeat.

    It never reaches the user: the function runs directly, and a notice says why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
