"""Draws the options of modules and losses from their signatures: an option that nobody thought of fails here, by name."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

Draw = Callable[[random.Random], Any]

NOT_DRAWN = {  # no effect on derivatives, or deprecated
    "device", "dtype", "_weight", "_freeze", "size_average", "reduce", "momentum", "norm_type", "init", "self", "mode_",
}  # fmt: skip

COMMON: dict[str, Draw] = {
    "bias": lambda rng: rng.random() < 0.7,
    "affine": lambda rng: rng.random() < 0.8,
    "elementwise_affine": lambda rng: rng.random() < 0.8,
    "track_running_stats": lambda rng: rng.random() < 0.5,
    "eps": lambda rng: rng.choice([1e-5, 0.1]),
    "layer_norm_eps": lambda rng: rng.choice([1e-5, 0.1]),
    "dropout": lambda rng: rng.choice([0.0, 0.3]),
    "batch_first": lambda rng: rng.random() < 0.5,
    "bidirectional": lambda rng: rng.random() < 0.5,
    "norm_first": lambda rng: rng.random() < 0.5,
    "sparse": lambda rng: rng.random() < 0.3,
    "reduction": lambda rng: rng.choice(["mean", "mean", "sum", "none"]),
}


def draw_options(function: Callable[..., Any], rng: random.Random, given: dict[str, Any]) -> dict[str, Any]:
    """A value for each parameter of a signature: from `given` (a value, or a function of the generator), or as usual."""
    options = {}
    for name in inspect.signature(function).parameters:
        if name in given:
            value = given[name]
            options[name] = value(rng) if callable(value) and getattr(value, "__name__", "") == "<lambda>" else value
        elif name in COMMON:
            options[name] = COMMON[name](rng)
        else:
            assert name in NOT_DRAWN, f"{function}: the sweep has no draw for the option {name!r}"
    return options


def per_axis(rng: random.Random, axes: int, choices: list[int]) -> Any:
    """One number for all axes, or one each."""
    return rng.choice(choices) if rng.random() < 0.4 else tuple(rng.choice(choices) for _ in range(axes))


def as_tuple(value: Any, axes: int) -> tuple[int, ...]:
    """One number an axis."""
    return (value,) * axes if isinstance(value, int) else tuple(value)


def describe(name: str, options: dict[str, Any]) -> str:
    """For the message of a failing case."""
    return f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})"
