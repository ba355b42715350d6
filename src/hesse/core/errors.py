"""Typed errors: what was asked, what was found, what to do; one class per kind of remedy.

Every class derives from `HesseError` and from the built-in exception that it refines, so that
`except ValueError` keeps working for people who do not know hesse. Every argument but the first has a
default, without which Python cannot unpickle an exception (data loader workers and pools send theirs pickled).
"""

from __future__ import annotations

from typing import Any


class HesseError(Exception):
    """Base of every error that hesse raises on purpose.

    Args:
        asked: what was asked of hesse.
        found: what was found instead, with the path of the leaf or the name of the op.
        remedy: what to do about it.
    """

    def __init__(self, asked: str, found: str = "", remedy: str = "") -> None:
        self.asked, self.found, self.remedy = asked, found, remedy
        super().__init__("\n".join(part for part in (asked, _line("found", found), _line("remedy", remedy)) if part))


def _line(label: str, text: str) -> str:
    return f"  {label}: {text}" if text else ""


class StructureError(HesseError, ValueError):
    """Trees, shapes or spaces do not match; the remedy is to pass the right structure."""


class LeafError(HesseError, TypeError):
    """A leaf cannot be differentiated (integer, boolean, not a tensor); convert or hold it constant."""


class DeviceError(HesseError, ValueError):
    """Leaves live on different devices; move them together."""


class NonScalarError(HesseError, ValueError):
    """A scalar was needed; reduce the output or pass a cotangent."""


class DetachedError(HesseError, ValueError):
    """The result does not depend on the variables through the graph; mend the cut."""


class NonFiniteError(HesseError, ValueError):
    """NaN or infinity where finite numbers are needed."""


class MixedSamplesError(HesseError, ValueError):
    """Samples of a batch influence each other, so that nothing is per-sample."""


class NondeterministicError(HesseError, RuntimeError):
    """The same call gave two answers; switch to eval mode or fix the randomness."""


class DataError(HesseError, ValueError):
    """The data cannot be used: empty, of uneven lengths, or of an unknown form."""


class OneShotDataError(DataError):
    """A generator was given where the data are read more than once."""


class DistributedError(HesseError, RuntimeError):
    """Processes that work together do not: one failed, is gone or silent, or they were asked different things."""


class StoreError(HesseError, OSError):
    """A folder of stored chunks cannot be written or read: it is there already, in use, incomplete, or the disk is full."""


class NoRuleError(HesseError, LookupError):
    """A registry has no rule for this key; register one."""


class UnsupportedError(HesseError, NotImplementedError):
    """Refused by name: hesse has no exact way to do this."""


class HolomorphyError(HesseError, ValueError):
    """A complex function is not holomorphic; treat real and imaginary parts as separate real inputs."""


class SymmetryError(HesseError, ValueError):
    """A method for symmetric (or positive definite) operators was given another kind."""


class MemoryBudgetError(HesseError, MemoryError):
    """The memory budget is too small; `least` is the number of bytes that would do."""

    def __init__(self, asked: str, found: str = "", remedy: str = "", least: int = 0) -> None:
        super().__init__(asked, found, remedy)
        self.least = least


class NotConvergedError(HesseError, RuntimeError):
    """An iterative method missed its tolerance; `partial` is what it had reached."""

    def __init__(self, asked: str, found: str = "", remedy: str = "", partial: Any = None) -> None:
        super().__init__(asked, found, remedy)
        self.partial = partial


class TargetError(HesseError, ValueError):
    """A command-line TARGET could not be found or does not return what it should."""


class MissingExtraError(HesseError, ImportError):
    """An optional dependency is missing; install the extra that the message names."""
