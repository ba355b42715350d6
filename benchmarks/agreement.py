"""Whether a result agrees with its reference, for quantities that are determined and for those that are drawn.

Peers draw their own cotangents and let none be given, so that a drawn quantity cannot be compared number by number.
Its **mean over `DRAWS` draws** is compared with its exact expectation, in three ways, block by block:

- what does not depend on the draws (the input-side factors of KFAC, up to scale) as any other result, to `TOLERANCE`;
- the **total** of a block (a trace, or the sum of a diagonal) to `TOTAL`: one number to which every sample and every
  draw contributes, so that chance moves it by one or two percent; it catches a wrong scale;
- its **form**, by the relative Frobenius error, to `FORM`: larger, since every entry has its own error, but a
  transposed factor, an unsquared root or a basis that is not that of the eigenvectors is further off.

Of EKFAC an expectation is known where its random eigenvectors do not enter, for the totals and the input side, and
nearly for the output side of layers with one position a sample: these are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from torch.linalg import vector_norm

from benchmarks.libraries.kronecker import INPUTS, MATRIX, OUTPUTS
from benchmarks.quantities import FLOOR, SAMPLED, TOLERANCE, relative_error

DRAWS = 16
TOTAL = 0.08
FORM = {"ggn_diagonal_sampled": 0.3, "kfac": 0.3, "ekfac": 0.3}


def disagreement(quantity: str, found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> tuple[float, float]:
    """The worst error and what it may be at most: of several, the one that is the largest part of its tolerance."""
    if quantity not in SAMPLED:
        return relative_error(found, reference), TOLERANCE
    reference = _in_form_of(found, reference)
    found = {name: found[name] for name in reference if name in found}
    if found.keys() != reference.keys() or any(found[name].shape != reference[name].shape for name in reference):
        return math.inf, TOTAL
    fixed = {name for name in reference if quantity == "kfac" and name.endswith(INPUTS)}
    drawn = reference.keys() - fixed
    errors = [
        (_worst({n: _total(n, found[n]) for n in drawn}, {n: _total(n, reference[n]) for n in drawn}), TOTAL),
        (_worst({n: found[n].double() for n in drawn}, {n: reference[n].double() for n in drawn}), FORM[quantity]),
    ]
    if fixed:
        errors.append((relative_error({n: found[n] for n in fixed}, {n: reference[n] for n in fixed}), TOLERANCE))
    return max(errors, key=lambda pair: pair[0] / pair[1])


def _in_form_of(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reference of each parameter as a whole matrix where the result has that, else by sides."""
    whole = {name.removesuffix(MATRIX) for name in reference if name.endswith(MATRIX) and name in found}
    other = {side for name in whole for side in (name + INPUTS, name + OUTPUTS)}
    return {n: b for n, b in reference.items() if n not in other and not (n.endswith(MATRIX) and n not in found)}


def _total(name: str, block: Tensor) -> Tensor:
    """The trace of a matrix, the sum of a diagonal, a trace itself."""
    return block.double().trace() if name.endswith((INPUTS, OUTPUTS, MATRIX)) else block.double().sum()


def _worst(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The largest relative error of any block by its norm; a block that vanishes is measured against `FLOOR`."""
    largest = max(float(vector_norm(block)) for block in reference.values())
    errors = []
    for name, block in reference.items():
        scale = max(float(vector_norm(block)), FLOOR * largest)
        errors.append(float(vector_norm(found[name] - block)) / scale if scale else math.inf)
    return math.inf if any(map(math.isnan, errors)) else max(errors)
