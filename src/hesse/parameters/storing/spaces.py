"""A space in a header, and back."""

from __future__ import annotations

from typing import Any

import torch

from hesse.core.errors import HesseError, StoreError, UnsupportedError
from hesse.core.space import Space
from hesse.operators.encoding import Decoder, Encoder


def space_to_json(space: Space) -> Any:
    """The names, shapes, dtypes and the nesting of a space."""
    encoder = Encoder(_no_operator)
    encoder.encode(space, "space")
    return encoder.spaces[0]


def space_from_json(entry: Any, device: torch.device) -> Space:
    """Undo `space_to_json`; trees that are no nested dicts, lists and tuples come back as dicts ``{path: leaf}``.

    Raises:
        StoreError: no description of a space.
    """
    try:
        return Decoder(_no_operator, {}, [entry], device, None).decode({"space": 0})
    except HesseError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            "hesse reads folders that it has written.", f"no space in the header ({error!r})", "write it again"
        ) from error


def _no_operator(*_: Any) -> Any:
    raise UnsupportedError("A space holds tensors only.", "an operator", "pass the space of a tree of tensors")
