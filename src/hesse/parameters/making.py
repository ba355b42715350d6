"""The Jacobian of some samples, by a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hesse.autodiff.determinism import deterministic
from hesse.autodiff.roots import capture_rows
from hesse.core.memory import Budget
from hesse.operators.base import LinearOperator
from hesse.parameters.jacobian import ParameterJacobian
from hesse.parameters.recipe import Recipe


def capture(
    recipe: Recipe, samples: tuple[Any, Any], *, memory: Budget | None = None, keep: bool | None = None
) -> ParameterJacobian:
    """The Jacobian of some samples of a data set, of a model that has to answer the same whenever it is run.

    Args:
        recipe: of these very samples, where their choice of outputs is their own.
        samples: ``(inputs, targets)``.
        memory: the budget of the Jacobian.
        keep: whether records are kept; by default as the recipe says.

    Raises:
        NondeterministicError: the model draws random numbers. Others as `parameter_jacobian`.
    """
    asked = recipe.asked if keep is None else replace(recipe.asked, keep=keep)
    with deterministic(recipe.model, asked.text):
        rows = capture_rows(recipe.model, recipe.loss, samples, asked)
    return ParameterJacobian.of(rows, recipe.model.params, memory, recipe, samples)


def mass_of(recipe: Recipe, samples: tuple[Any, Any]) -> float:
    """The normalizer of the loss of some samples. Cost: a forward pass."""
    asked = replace(recipe.asked, keep=False)
    with deterministic(recipe.model, asked.text):
        return float(capture_rows(recipe.model, recipe.loss, samples, asked).facts.mass)


def linear(recipe: Recipe, samples: tuple[Any, Any]) -> LinearOperator:
    """The derivative of the outputs for some samples, for products."""
    with deterministic(recipe.model, recipe.asked.text):
        return recipe.linear(samples[0])
