"""The Moore-Penrose inverse of any operator, as an operator."""

from __future__ import annotations

from hesse.core.errors import LeafError, StructureError
from hesse.core.memory import Budget
from hesse.linalg.pinv_parts import part_pinv
from hesse.operators import LinearOperator
from hesse.operators.spread import asked_together


@asked_together
def pinv(A: LinearOperator, *, rtol: float | None = None, memory: Budget | None = None) -> LinearOperator:
    """The Moore-Penrose inverse: ``pinv(A) @ b`` is the shortest x that minimizes ``|b - A x|``.

    Args:
        A: any operator, between real or between complex spaces.
        rtol: singular values up to `rtol` times the largest one of the whole operator count as zero, as in
            `torch.linalg.pinv`; by default the larger dimension times the unit of rounding of the dtype (16-bit: of float32).
        memory: budget for matrices: bytes, fraction or text; by default the one in force.

    Returns:
        an operator from `A.out_space` to `A.in_space` with the attributes `rank` (of what was kept), `truncated` (singular
        values dropped), `condition` (of what was kept), `gap` (the smallest kept over the largest dropped; near 1 the rank is a
        matter of taste) and `method`; each None where the method does not know it. It is a snapshot: ask again when the entries
        of `A` have changed. By the structure (diagonal, dense, low rank, Kronecker, block-diagonal, scaled, ``J.H @ J``), else
        by the singular values of the matrix where it fits and its smaller dimension is at most 3000, else by LU
        factors of sparse sums and products where those show that nothing is to be dropped, else by LSMR at each product,
        certified as in `lstsq`.

    Raises:
        StructureError: a space that is real on one side and complex on the other, or `rtol` is negative.
        LeafError: integer spaces.
        NonFiniteError: the matrix has a NaN or an infinity.
        MemoryBudgetError, UnsupportedError: a cut-off was asked for, and the matrix is too large.
        NotConvergedError: at a product, LSMR did not get there.

    Cost: by the matrix: ``min(out, in)`` products in blocks, and its singular values; then two thin products with the singular
    vectors, or one with the inverse, a product. Differentiable by the matrices of `Dense` and `Kronecker` operators and by the
    entries of `Diagonal` ones, where what is dropped is zero to rounding (Golub and Pereyra 1973).
    """
    check_fields(A, "pinv")
    check_cut("pinv", rtol)
    return part_pinv(A, rtol, memory)


def check_fields(A: LinearOperator, question: str) -> None:
    """Raise unless both spaces are real floating-point ones, or both complex ones.

    Raises:
        LeafError: an integer leaf. StructureError: real and complex leaves.
    """
    dtypes = {*A.in_space.dtypes, *A.out_space.dtypes}
    whole = sorted(str(dtype) for dtype in dtypes if not (dtype.is_floating_point or dtype.is_complex))
    if whole:
        raise LeafError(f"{question} needs floating-point spaces.", f"{whole[0]} in {A}", "convert it, A.double() or so")
    if len({dtype.is_complex for dtype in dtypes}) > 1:
        raise StructureError(
            f"{question} needs an operator between real spaces, or between complex ones.",
            f"{A.in_space} to {A.out_space}",
            "split complex vectors into their real and imaginary parts, or take complex leaves only",
        )


def check_cut(question: str, rtol: float | None) -> None:
    """Raise `StructureError` unless the tolerance is None or at least 0."""
    if rtol is not None and not rtol >= 0:
        raise StructureError(f"{question} needs rtol >= 0.", f"rtol={rtol}", "pass a fraction such as rtol=1e-10, or None")
