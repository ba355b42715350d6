"""Jacobians by forward mode, which is believed only where it agrees with the kept graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from hesse.autodiff.linearize import forward_agrees
from hesse.autodiff.recording import Recording
from hesse.core.errors import UnsupportedError

Mode = Literal["auto", "forward", "reverse"]
Table = list[list[Tensor]]  # one tensor for each pair of an output leaf and an input leaf


def by_forward_mode(
    recording: Recording,
    mode: Mode,
    make: Callable[[], Table],
    apply: Callable[[Tensor, Tensor], Tensor],
    asked: str,
) -> Table | None:
    """What `make` computes by forward mode, or None where reverse mode has to do it.

    Args:
        recording: the function.
        mode: "forward" leaves no choice.
        make: the table of Jacobians.
        apply: the product of an entry of the table with a tensor like its input leaf.
        asked: what is asked of hesse, for error messages.

    Raises:
        UnsupportedError: mode is "forward", and the function cannot run in forward mode or has another derivative there.
    """
    try:
        table = make()
    except RuntimeError as error:
        if mode != "forward":
            return None
        found = f"the function cannot run in forward mode: {str(error).splitlines()[0]}"
        raise UnsupportedError(asked, found, "use mode='reverse'") from error

    def push(tangents: list[Tensor]) -> list[Tensor]:
        slopes = []
        for y, row in zip(recording.outputs, table, strict=True):
            parts = [apply(block, t).to(y.dtype) for block, t in zip(row, tangents, strict=True)]
            slopes.append(sum(parts, y.new_zeros(y.shape)))
        return slopes

    if recording.functorch or forward_agrees(recording, push):
        return table
    if mode == "forward":
        found = "another derivative than in reverse mode (a function that is not deterministic, or an op that is wrong)"
        raise UnsupportedError(asked, found, "use mode='reverse'")
    return None
