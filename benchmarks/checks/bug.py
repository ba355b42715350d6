"""What a planted bug is: a program with a wrong derivative, beside the same program without the error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal[
    "factor", "sign", "transposition", "missing term", "one element", "small relative error", "tiny gradient", "region of x",
    "broadcast", "reduction", "cut graph", "wrong argument", "second order", "forward mode", "cotangent ignored",
    "cotangent nonlinear", "cotangent layout", "input layout", "saved tensor changed", "input changed", "cotangent changed",
    "stale cache", "repeated backward", "interleaved calls", "accumulation", "subset of requires_grad", "batch size",
    "zero size", "duplicated index", "tie or kink", "train and eval", "shared parameter", "copy or storage", "dtype",
    "non-determinism", "vmap", "diagonal of the module", "sparse input", "complex", "crash",
]  # fmt: skip


@dataclass(frozen=True)
class Program:
    """Something to check.

    Attributes:
        call: of the inputs; an `nn.Module` where parameters or module behavior are concerned.
        inputs: positional; floating-point ones are differentiated.
    """

    call: Callable[..., Tensor | tuple[Tensor, ...]] | nn.Module
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Bug:
    """A planted error.

    Attributes:
        name: unique.
        kind: the class of errors that it belongs to.
        about: what is wrong, in a line.
        make: ``(dtype, planted) -> Program``; fresh objects at each call, the same numbers; without the error if not planted.
        dtypes: in which it exists.
    """

    name: str
    kind: Kind
    about: str
    make: Callable[[torch.dtype, bool], Program]
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32)
