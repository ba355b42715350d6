"""Some samples and some parameters, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from hesse.core.errors import StructureError

Names = Iterable[str] | Callable[[str, Tensor], bool] | None


def chosen_samples(samples: Any, count: int) -> Tensor | None:
    """The numbers of the chosen samples, ``[k]``; None for all.

    Raises:
        StructureError: no such sample, or none at all.
    """
    if samples is None:
        return None
    if isinstance(samples, str) or (isinstance(samples, (list, tuple, set)) and any(isinstance(one, str) for one in samples)):
        remedy = "pass names of parameters as params="
        raise StructureError(f"Rows are chosen by the numbers of {count} samples.", f"the text {samples!r}", remedy)
    numbers = torch.arange(count)
    try:
        index = numbers[samples if isinstance(samples, slice) else torch.as_tensor(samples).cpu()].reshape(-1)
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        raise StructureError(
            f"Rows are chosen among {count} samples.", str(error), "pass a slice, numbers, or a mask of that length"
        ) from error
    if index.numel() == 0:
        raise StructureError("A choice of rows leaves at least one sample.", "none", "pass the numbers of some")
    return index


def chosen_names(params: Names, named: dict[str, Tensor]) -> list[str]:
    """The names of the chosen parameters, in the parameters' order.

    Raises:
        StructureError: no such parameter, or none at all.
    """
    if params is None:
        return list(named)
    params = [params] if isinstance(params, str) else params
    wanted = {n for n, leaf in named.items() if params(n, leaf)} if callable(params) else set(params)
    unknown = sorted(wanted - set(named))
    if unknown or not wanted:
        raise StructureError(
            "select(params=) takes names of parameters of the Jacobian.",
            f"no parameter {unknown[0]!r}" if unknown else "none chosen",
            f"some of {list(named)[:8]}",
        )
    return [name for name in named if name in wanted]
