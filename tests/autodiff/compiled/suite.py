"""What a derivative program is, and the numbers that programs are made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

FLAGS = {
    "second": "has a second derivative in plain torch",
    "random": "draws from torch's global generator",
    "reads": "reads values of tensors into Python, or has shapes that depend on them",
    "mutates": "writes to closed-over state or to its arguments, which is compared too",
    "fixed": "chooses its own dtypes, whatever `make` is asked for",
    "half": "computes in 16 bits, at least in part",
    "integers": "takes integers, strings or other static values that change nothing but the path taken",
}


class Draw:
    """Random data for one making of a program: all of one dtype, from one generator, a little larger by `extra`."""

    def __init__(self, dtype: torch.dtype, generator: torch.Generator, extra: int = 0) -> None:
        self.dtype, self.generator, self.n = dtype, generator, 3 + extra

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        numbers = torch.randn(shape, dtype=torch.float64, generator=self.generator) * scale
        return numbers.to(dtype or self.dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        numbers = torch.rand(shape, dtype=torch.float64, generator=self.generator) * (high - low) + low
        return numbers.to(self.dtype)

    def complex(self, *shape: int) -> Tensor:
        return torch.complex(self.normal(*shape, dtype=torch.float64), self.normal(*shape, dtype=torch.float64))

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def number(self) -> float:
        return float(self.normal(1, dtype=torch.float64))

    def module(self, build: Callable[[], nn.Module]) -> nn.Module:
        """A module of this dtype, initialized from this generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.integers(2**31, 1)))
            return build().to(self.dtype)


@dataclass(frozen=True)
class Program:
    """A function to differentiate with respect to its first argument, and data for it.

    `make` gives ``(f, args, kwargs)``; with an equal generator it gives equal twins that share nothing. A function that
    reads closed-over values carries ``f.change()``, which gives them new values, and one that writes to closed-over state
    carries ``f.state()``, the tensors and numbers that it writes to.
    """

    name: str
    maker: Callable[[Draw], Made]
    flags: frozenset[str] = field(default_factory=frozenset)

    def make(self, dtype: torch.dtype, generator: torch.Generator, extra: int = 0) -> Made:
        """``(f, args, kwargs)`` in this dtype; `extra` makes the batch that much larger."""
        return self.maker(Draw(dtype, generator, extra))

    def __str__(self) -> str:
        return self.name


REGISTERED: list[Program] = []


def program(*flags: str) -> Callable[[Callable[[Draw], Made]], Callable[[Draw], Made]]:
    """Registers a maker under its own name."""
    assert set(flags) <= set(FLAGS), flags

    def register(maker: Callable[[Draw], Made]) -> Callable[[Draw], Made]:
        REGISTERED.append(Program(maker.__name__, maker, frozenset(flags)))
        return maker

    return register


def changing(f: Callable[..., Any], change: Callable[[], Any]) -> Callable[..., Any]:
    """`f`, with the way to change what it closes over."""
    f.change = change  # type: ignore[attr-defined]
    return f


def watched(f: Callable[..., Any], state: Callable[[], Any]) -> Callable[..., Any]:
    """`f`, with the state that it writes to."""
    f.state = state  # type: ignore[attr-defined]
    return f


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module by name, detached."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}
