"""PyTorch's refusals, as errors of hesse's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hesse.core.errors import StructureError, UnsupportedError


@contextmanager
def typed_errors() -> Iterator[None]:
    """PyTorch's refusals to differentiate a graph, as errors of hesse's own.

    Raises:
        UnsupportedError: an op without a derivative. StructureError: a tensor was changed in place after it was used.
    """
    asked = "Derivatives by parameters need a graph that PyTorch can differentiate."
    try:
        yield
    except RuntimeError as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if "modified by an inplace operation" in text:
            raise StructureError(asked, text, "let the model work on a copy: x.clone()") from error
        if "is not implemented" in text or "not differentiable" in text:
            raise UnsupportedError(asked, text, "use another op, or leave its parameters out by params=") from error
        raise
