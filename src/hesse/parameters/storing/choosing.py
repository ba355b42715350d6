"""Rows of a stored matrix, chosen as in ``R[samples]``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse.core.errors import StructureError


def chosen_rows(samples: Any, count: int) -> tuple[Tensor, bool]:
    """The numbers of the chosen rows, int64 ``[n]``, and whether one row is meant, without an axis of rows.

    Args:
        samples: an int (also of NumPy, or a tensor of no axis), a slice or ``...``, a list, range, array or tensor of numbers,
            or a mask ``[count]``; they may choose none.
        count: of the rows.

    Raises:
        StructureError: something else, or no such row.
    """
    if samples is Ellipsis:
        samples = slice(None)
    if isinstance(samples, slice):
        return _of_slice(samples, count), False
    values = _tensor(samples)
    if values.dtype == torch.bool:
        if values.shape != (count,):
            raise _refused(f"a mask {list(values.shape)}", f"a mask [{count}], or numbers")
        values = values.nonzero()[:, 0]
    if values.ndim > 1:
        raise _refused(f"numbers of shape {list(values.shape)}", "numbers along one axis")
    if values.numel() and (values.is_floating_point() or values.is_complex()):  # an empty list has no type
        raise _refused(f"numbers of {values.dtype}", "integers, or a mask of booleans")
    index = values.reshape(-1).long()
    outside = index[(index < -count) | (index >= count)]
    if outside.numel():
        raise _refused(f"row {int(outside[0])} of {count}", f"numbers of {-count} to {count - 1}")
    return torch.where(index < 0, index + count, index), values.ndim == 0


def _of_slice(samples: slice, count: int) -> Tensor:
    try:
        chosen = range(*samples.indices(count))
    except (TypeError, ValueError) as error:
        raise _refused(repr(samples), "ends that are integers, and a step above zero") from error
    if chosen.step < 0:
        raise _refused(f"a step of {chosen.step}", "R[first:last].flip(0), which turns what was read")
    return torch.arange(chosen.start, max(chosen.stop, chosen.start), chosen.step)


def _tensor(samples: Any) -> Tensor:
    if samples is None or isinstance(samples, (bool, np.bool_, tuple, str, set, dict)):
        raise _refused(repr(samples), "a number, a slice or a list of numbers, and take columns of what comes back")
    try:
        return torch.as_tensor(list(samples) if isinstance(samples, range) else samples).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        shown = repr(samples)
        shown = shown if len(shown) < 60 else f"{shown[:57]}..."
        raise _refused(shown, "a number, a slice, or a list of numbers") from error


def _refused(found: str, wanted: str) -> StructureError:
    return StructureError("R[samples] reads rows.", found, f"pass {wanted}")
