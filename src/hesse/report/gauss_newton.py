"""The positive semi-definite curvature of a case: its Gauss-Newton matrix, or the Fisher matrix that stands in for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.check.replica import call_model
from hesse.core.errors import HesseError, UnsupportedError
from hesse.curvature import fisher, ggn
from hesse.operators import LinearOperator
from hesse.report.case import Case


@dataclass(frozen=True)
class GaussNewtonLike:
    """A matrix and what to call it.

    Attributes:
        matrix: symmetric, over all data of the case.
        name: in a sentence.
        short: in a legend.
        is_ggn: whether it is the Gauss-Newton matrix.
    """

    matrix: LinearOperator
    name: str
    short: str
    is_ggn: bool


def gauss_newton(case: Case, notes: list[str]) -> GaussNewtonLike:
    """The Gauss-Newton matrix; for a loss that is linear in the output the expected Fisher matrix, with a note.

    Raises:
        HesseError: neither exists; the error is that of the Gauss-Newton matrix.

    Cost: a forward pass of the first batch.
    """
    try:
        return GaussNewtonLike(ggn(case.model, case.loss, case.data), "Gauss-Newton matrix", "GGN", True)
    except UnsupportedError as error:
        try:
            matrix = expected_fisher(case)
        except HesseError:
            raise error from None
        notes.append(f"No Gauss-Newton matrix: {error.found}. The expected Fisher matrix stands in its place.")
        return matrix


def expected_fisher(case: Case) -> GaussNewtonLike:
    """The expected Fisher matrix.

    Raises:
        UnsupportedError: the loss stands for no distribution of targets.

    Cost: a forward pass of the first batch.
    """
    return GaussNewtonLike(fisher(case.model, case.loss, case.data, kind="expected"), "expected Fisher matrix", "Fisher", False)


def outputs_per_sample(case: Case) -> int | None:
    """Numbers that the model gives for one sample; None where its output is no tensor.

    Cost: a forward pass of the first batch.
    """
    with torch.no_grad():
        output = call_model(case.model, case.batch[0])
    return math.ceil(output.numel() / max(case.samples, 1)) if isinstance(output, Tensor) else None


def say_which_data(case: Case, notes: list[str]) -> None:
    """A note that all batches were used, where there are several."""
    if case.batches != 1:
        notes.append(f"Over {'all batches' if case.batches is None else f'all {case.batches} batches'} of the data.")
