"""What a sparse derivative costs and why, in words."""

from __future__ import annotations

from hesse.sparse.colored import ColoredPattern, Kind
from hesse.sparse.coloring import coloring
from hesse.sparse.detect import Sparsity

_SECONDS = 0.05  # for each other way to color


def explanation(colored: ColoredPattern, found: Sparsity | None, running: list[str], checks: int, *, hessian: bool) -> str:
    """Lines about size, colors, origin, way of running and checks.

    Args:
        colored: the pattern and its colors.
        found: how the pattern was found.
        running: how it is evaluated, and notes on it.
        checks: how many runs were checked.
        hessian: whether it is a Hessian.
    """
    pattern = colored.pattern
    rows, columns = pattern.shape
    lines = [f"{'Hessian' if hessian else 'Jacobian'} of shape {rows} x {columns}: {pattern.nnz} entries, "
             f"{100 * pattern.density:.3g} %"]  # fmt: skip
    lines.append(f"products: {colored.colors}, colors of kind '{colored.kind}' ({colored.found_by})")
    lines.append(f"  otherwise: {_others(colored, hessian)}")
    lines.append("pattern: given" if found is None else f"pattern: found by one run ({found.analyzed})")
    if found is not None:
        lines += [f"  {note}" for note in found.explain().splitlines()]
    lines.append(f"evaluation: {running[0]}")
    lines += [f"  {note}" for note in running[1:]]
    lines.append(f"check: {f'{checks} run{_s(checks)} agreed with a random product' if checks else 'none yet'}")
    return "\n".join(lines)


def _others(colored: ColoredPattern, hessian: bool) -> str:
    kinds: tuple[Kind, ...] = ("star", "acyclic", "column") if hessian else ("column", "row", "bidirectional")
    counts = []
    for kind in kinds:
        if kind == colored.kind or (kind in ("star", "acyclic") and not colored.pattern.is_symmetric):
            continue
        counts.append(f"{kind} {coloring(colored.pattern, kind=kind, seconds=_SECONDS).colors}")
    return ", ".join(counts)


def _s(count: int) -> str:
    return "s" * (count != 1)
