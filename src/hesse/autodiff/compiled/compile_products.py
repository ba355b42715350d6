"""`compile_products`: the door to compiled products, which brings the tracer at its first use only."""

from __future__ import annotations

from hesse.autodiff.compiled.mode import Mode, require_mode
from hesse.core.errors import StructureError
from hesse.operators.base import LinearOperator

_ASKED = "compile_products(A) records the products of an operator, and replays them."


def compile_products(A: LinearOperator, *, compile: Mode = "replay") -> LinearOperator:
    """The same operator, its products replayed from a record instead of run by the autograd engine.

    It pays for small problems with many products (conjugate gradients, Lanczos, random traces), where time goes into the
    bookkeeping around each operation; the benchmark of compiled products says from how many on.

    Args:
        A: an operator of one batch or of one linearized function (`loss_hessian`, `ggn`, `fisher`, `hessian_operator`,
            ``linearize(f, x).jacobian``), sums and multiples of these.
        compile: "off": A itself. "replay": the third product of a kind is recorded, later ones run its operations. "native":
            they are compiled by inductor, which takes seconds.

    Returns:
        An operator with the spaces, tags and mass of A, and its exact diagonal and trace; also `compile_seconds` and `replays`.
        Products equal those of A to rounding: the first replayed one is compared. A product runs directly, and a
        `CompileNotice` says why once, where it goes through a data set or through Python code of yours, or draws random
        numbers; without a notice where it is to be differentiated itself, inside a `torch.func` transform, and where a tensor
        that the record read was changed in place (A then says what it says of that, an error for curvature).

    Raises:
        StructureError: A is no operator, or an unknown way.

    Cost: nothing yet; three products of each kind (one vector, or a block of k) run directly, then about 10 products for a
    record; "native" 2 to 20 seconds of compiling. It holds what A holds, and at most 512 MiB of constants.
    """
    require_mode(compile, _ASKED)
    if not isinstance(A, LinearOperator):
        raise StructureError(_ASKED, type(A).__name__, "pass an operator, as hesse.loss_hessian gives one")
    if compile == "off":
        return A
    from hesse.autodiff.compiled.products import CompiledProducts

    return CompiledProducts(A, compile)
