"""Operators over a model run it again and again: it has to answer the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hesse.autodiff.forward import random_state
from hesse.autodiff.functional import buffers_preserved
from hesse.autodiff.model import Model
from hesse.core.errors import NondeterministicError


@contextmanager
def deterministic(model: Model, asked: str) -> Iterator[None]:
    """Refuse a model that draws random numbers inside this context; its buffers and the random state are put back.

    Raises:
        NondeterministicError: with the dropout modules that are in train mode.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        before = random_state(model.device)
        with buffers_preserved(model.module):
            yield
        drew = any(not torch.equal(a, b) for a, b in zip(before, random_state(model.device), strict=True))
    if not drew:
        return
    modules = model.module.named_modules() if model.module is not None else ()
    names = [
        f"'{name}' ({type(part).__name__})" for name, part in modules if "Dropout" in type(part).__name__ and part.training
    ]
    raise NondeterministicError(
        asked,
        "the model draws random numbers" + (f": {', '.join(names[:3])} in train mode" if names else ""),
        "call model.eval(), or fix the randomness inside the model",
    )
