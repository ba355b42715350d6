"""Products with sparse matrices that do not depend on the input: an element on what the stored entries reach."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Link, Pairs, Same, places, sparsity_rules


def entries_of(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries that a matrix stores, of any sparse layout."""
    coo = matrix.detach().to_sparse_coo() if matrix.layout is not torch.sparse_coo else matrix.detach()
    rows, columns = coo._indices().cpu()
    return rows, columns


def sparse_product(call: Call, added: list[Tensor], a: Tensor, b: Tensor) -> list[Link]:
    """A product whose first or second factor is sparse.

    Args:
        call: the call.
        added: what is added to the product.
        a, b: matrices, one of them sparse; b may be a vector.
    """
    y = call.outputs[0]
    links: list[Link] = [(0, t, Same()) for t in added]
    if a.layout is not torch.strided and b.layout is not torch.strided:
        return links
    wide = y.shape[1] if y.ndim > 1 else 1
    if a.layout is not torch.strided:
        rows, columns = entries_of(a)
        each = torch.arange(wide)
        members, results = ((i.unsqueeze(-1) * wide + each).flatten() for i in (columns, rows))
        return [*links, (0, b, Pairs(places(b), members, results, places(y)))]
    rows, columns = entries_of(b)
    each = torch.arange(a.shape[0]).unsqueeze(-1)
    members, results = ((each * size + i).flatten() for size, i in ((a.shape[1], rows), (wide, columns)))
    return [*links, (0, a, Pairs(places(a), members, results, places(y)))]


@sparsity_rules.register("_sparse_mm", "_sparse_addmm")
def explicit(call: Call) -> list[Link]:
    """Ops for sparse factors alone."""
    *added, a, b = call.operands
    return sparse_product(call, added, a, b)
