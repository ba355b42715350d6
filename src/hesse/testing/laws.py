"""Laws that every linear operator obeys, as assertions: for hesse's own operators and for anybody's.

Each law draws random vectors and compares two ways to the same result. Equality is relative to the sizes of
the terms compared, within `rtol` (by default ``eps ** 0.65`` of the coarsest leaf). A law that does not hold
raises `BrokenLawError`, an `AssertionError` that names the law and gives the numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hesse.core import tree
from hesse.operators.base import LinearOperator
from hesse.testing.comparison import BrokenLawError, broken, require_close, source_of, tolerance, wide
from hesse.testing.effects import assert_no_side_effects, assert_repeatable
from hesse.testing.products import (
    assert_batch_axes,
    assert_flat,
    assert_mm,
    assert_scipy,
    assert_spaces,
)
from hesse.testing.tags import assert_tags

_REMEDY = "mend transpose(): it returns the operator of the transposed matrix, without conjugation"


def assert_linear(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """``A (a v + b w) = a A v + b A w``, and ``A 0 = 0``; a and b are complex where every leaf is."""
    source, allowed = source_of(generator), tolerance(A, rtol)
    is_complex = all(dtype.is_complex for dtype in A.in_space.dtypes)
    a, b = (0.7 - 1.1j, -1.3 + 0.4j) if is_complex else (0.7, -1.3)
    v, w = A.in_space.normal(generator=source), A.in_space.normal(generator=source)
    mixed = tree.map_tree(lambda x, y: a * x + b * y, v, w)
    Av, Aw = (wide(A.out_space, A.mv(x)) for x in (v, w))
    left, right = wide(A.out_space, A.mv(mixed)), a * Av + b * Aw
    scale = abs(a) * Av.norm() + abs(b) * Aw.norm()
    remedy = "write mv so that it is linear; the derivative of a map is, an affine or nonlinear map is not"
    require_close(A, "linear", "A (a v + b w) = a A v + b A w", (left, right), allowed, remedy, scale)
    zero = wide(A.out_space, A.mv(A.in_space.zeros()))
    if zero.any():
        raise broken("linear", A, "A 0 = 0", f"|A 0| = {zero.norm().item():.6g}", remedy)


def assert_adjoint(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """``<A v, u> = <v, A.T u>`` with no conjugation, and ``<A v, conj(u)> = <v, conj(A.H u)>``."""
    source, allowed = source_of(generator), tolerance(A, rtol)
    v, u = A.in_space.normal(generator=source), A.out_space.normal(generator=source)
    flat_v, flat_u, Av = wide(A.in_space, v), wide(A.out_space, u), wide(A.out_space, A.mv(v))
    ATu, AHu = wide(A.in_space, A.T.mv(u)), wide(A.in_space, A.H.mv(u))
    bound = torch.maximum(Av.norm() * flat_u.norm(), flat_v.norm() * torch.maximum(ATu.norm(), AHu.norm()))
    for statement, left, right in (
        ("<A v, u> = <v, A.T u>", Av * flat_u, flat_v * ATu),
        ("<A v, u*> = <v, (A.H u)*>", Av * flat_u.conj(), flat_v * AHu.conj()),
    ):
        require_close(A, "adjoint", statement, (left.sum(), right.sum()), allowed, _REMEDY, bound)


def assert_transpose(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """The transpose of the transpose is the operator: ``A.T.T v = A v``."""
    v, allowed = A.in_space.normal(generator=source_of(generator)), tolerance(A, rtol)
    left, right = wide(A.out_space, A.T.T.mv(v)), wide(A.out_space, A.mv(v))
    require_close(A, "transpose", "A.T.T v = A v", (left, right), allowed, _REMEDY)


_LAWS: tuple[Callable[..., None], ...] = (
    assert_no_side_effects, assert_repeatable, assert_linear, assert_tags, assert_transpose, assert_adjoint,
    assert_mm, assert_batch_axes, assert_flat, assert_scipy,
)  # fmt: skip


def assert_operator_laws(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """Assert every law of this package for an operator; for tests of your own operators.

    Args:
        A: the operator.
        generator: source of the random vectors (by default the same ones each time).
        rtol: relative tolerance; by default ``eps ** 0.65`` of the coarsest leaf.

    Raises:
        BrokenLawError: an `AssertionError` that lists every law that does not hold, with numbers;
            its `laws` names them.

    Cost: about 70 products, whatever the dimension; an operator of dimension up to 256 tagged PSD is also
    turned into a matrix.
    """
    source = source_of(generator)
    assert_spaces(A, generator=source, rtol=rtol)
    errors: list[BrokenLawError] = []
    for law in _LAWS:
        try:
            law(A, generator=source, rtol=rtol)
        except BrokenLawError as error:
            errors.append(error)
        except Exception as error:
            error.add_note(f"raised while {law.__name__} was checked on {A!r}")
            raise
    if len(errors) == 1:
        raise errors[0]
    if errors:
        names = tuple(name for error in errors for name in error.laws)
        details = "\n".join(str(error) for error in errors)
        asked = f"{len(errors)} laws are broken by {A!r}: {', '.join(names)}."
        raise BrokenLawError(f"{asked}\n{details}", laws=names)
