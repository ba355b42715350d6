"""What every question shares: checked options, default tolerances, and the two ways to fail."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from hesse.core.errors import NotConvergedError, StructureError, SymmetryError
from hesse.operators import LinearOperator, Tag

ON_FAILURE = ("raise", "return")


def check_choice(question: str, option: str, given: object, allowed: Sequence[object]) -> None:
    """Raise `StructureError`, which lists what is allowed, if an option has another value."""
    if given not in allowed:
        listed = ", ".join(repr(choice) for choice in allowed)
        raise StructureError(f"{question} has no such {option}.", f"{option}={given!r}", f"use one of {listed}")


def check_positive(question: str, **options: float | None) -> None:
    """Raise `StructureError` if an option that is given (not None) is not a positive number."""
    for name, given in options.items():
        if given is not None and not given > 0:
            raise StructureError(f"{question} needs {name} > 0.", f"{name}={given}", "pass a positive number")


def require_square(A: LinearOperator, question: str, remedy: str) -> None:
    """Raise `StructureError` unless the operator is square."""
    if A.shape[0] != A.shape[1]:
        raise StructureError(f"{question} needs a square operator.", f"{A} of shape {A.shape}", remedy)


def is_complex(A: LinearOperator) -> bool:
    """Whether one of the spaces of the operator is complex."""
    return A.in_space.dtype.is_complex or A.out_space.dtype.is_complex


def is_hermitian(A: LinearOperator) -> bool:
    """Whether the tags say that the operator equals its adjoint (complex: SYMMETRIC alone does not)."""
    if A.tags & {Tag.HERMITIAN, Tag.PSD}:
        return True
    return bool(A.tags & {Tag.SYMMETRIC, Tag.DIAGONAL}) and not is_complex(A)


def require_hermitian(A: LinearOperator, question: str, remedy: str) -> None:
    """Raise `SymmetryError` unless the operator maps a space to itself and is tagged Hermitian."""
    if is_hermitian(A) and A.in_space == A.out_space:
        return
    needed = "Tag.HERMITIAN (SYMMETRIC alone is not enough over complex numbers)" if is_complex(A) else "Tag.SYMMETRIC"
    tags = ", ".join(sorted(tag.name for tag in A.tags)) or "no tags"
    found = f"{type(A).__name__} of shape {A.shape} with {tags}"
    raise SymmetryError(f"{question} needs an operator that equals its adjoint.", found, f"tag it {needed}; {remedy}")


def rounding(A: LinearOperator) -> float:
    """Unit of rounding of the coarsest leaf dtype that a product with the operator passes through."""
    dtypes = {*A.in_space.dtypes, *A.out_space.dtypes} or {torch.get_default_dtype()}
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def conclude(error: NotConvergedError, on_failure: str) -> None:
    """Raise the error, or warn with its text if the caller wants the partial result returned."""
    if on_failure == "raise":
        raise error
    warnings.warn(str(error), RuntimeWarning, stacklevel=3)
