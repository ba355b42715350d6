"""Kronecker-factored results in one form, whatever a library calls its factors and wherever it keeps the scale.

A block with factors gives ``<name> (inputs)``, its input-side factor with a trace of one, and ``<name> (outputs)``,
its output-side factor times the trace that was taken from the other. Both are partial traces of the block (up to
the scale of the first), so that they can be read from a matrix that is known by eigenvectors too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

INPUTS, OUTPUTS, MATRIX = " (inputs)", " (outputs)", " (matrix)"


def factors(sides: Mapping[str, Sequence[Tensor]], matrices: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Of ``name -> (output side, input side)``, or ``(output side,)`` for a bias, and of whole blocks.

    Args:
        sides: factors ``[a, a]`` and ``[b, b]``.
        matrices: blocks without factors; that of a bias is its output side.
    """
    found = {}
    for name, (outputs, *rest) in sides.items():
        scale = rest[0].trace() if rest else 1.0
        found[name + OUTPUTS] = outputs * scale
        if rest:
            found[name + INPUTS] = rest[0] / scale
    for name, matrix in (matrices or {}).items():
        found[name + (OUTPUTS if name.endswith("bias") else MATRIX)] = matrix
    return found


def corrected(sides: Mapping[str, tuple[Tensor, Tensor | None, Tensor]]) -> dict[str, Tensor]:
    """Of ``name -> (P, Q, values)``: ``(P x Q) diag(values) (P x Q)'``, without Q for a bias.

    Its partial traces are not scaled; the whole trace comes as ``<name>``.

    Args:
        sides: ``[a, a]``, ``[b, b]`` and ``[a, b]``; for a bias ``[a, a]``, None and ``[a]``.
    """
    found = {}
    for name, (P, Q, values) in sides.items():
        found[name] = values.sum()
        if Q is not None:
            found[name + OUTPUTS] = (P * values.sum(1)) @ P.T
            found[name + INPUTS] = (Q * values.sum(0)) @ Q.T
    return found
