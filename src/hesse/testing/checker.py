"""What the pytest fixture gives to a test: checks that assert, with the level and the seed of the session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from hesse.check import CheckReport, check_derivatives
from hesse.check.functions.case import Level
from hesse.check.module import check_module
from hesse.check.modules.diagonal import Diagonal
from hesse.check.operator import check_operator
from hesse.core.random import make_generator
from hesse.core.tree import Tree
from hesse.testing.confirmed import require, run_check
from hesse.testing.laws import Law


class Checker:
    """Checks that raise unless everything is confirmed; the message is the report.

    Args:
        level: of every check that does not name its own.
        seed: of the directions, cotangents and vectors.
        timeout: None, or seconds for runs in a process of their own (`hesse.check.isolated`).

    Attributes:
        level, seed, timeout: the same.
        report: of the last check; None before the first.
    """

    def __init__(self, level: Level = "quick", seed: int = 0, timeout: float | None = None) -> None:
        self.level: Level = level
        self.seed, self.timeout = seed, timeout
        self.report: CheckReport | None = None

    @property
    def generator(self) -> torch.Generator:
        """A generator with the seed, a new one each time."""
        return make_generator(self.seed)

    def derivatives(
        self, f: Callable[[Any], Any], x: Tree, *, level: Level | None = None, rtol: float | None = None
    ) -> CheckReport:
        """Assert the derivatives of a function of one tree at a point: `hesse.check_derivatives`.

        Args:
            f, x, rtol: as there.
            level: other than the session's.

        Returns:
            The report.

        Raises:
            WrongDerivativeError: an `AssertionError` with the report.
        """
        level = level or self.level
        return self._confirmed(partial(check_derivatives, f, x, level=level, rtol=rtol, generator=self.generator), level)

    def module(
        self, module: nn.Module, *inputs: Any, level: Level | None = None, diagonal: Diagonal | None = None, **named: Any
    ) -> CheckReport:
        """Assert a module's derivatives and behavior: `hesse.check_module`.

        Args:
            module, *inputs, diagonal, **named: as there.
            level: other than the session's.

        Returns:
            The report.

        Raises:
            WrongDerivativeError: an `AssertionError` with the report.
        """
        level = level or self.level
        run = partial(check_module, module, *inputs, level=level, generator=self.generator, diagonal=diagonal, **named)
        return self._confirmed(run, level)

    def operator(
        self, A: Any, *, level: Level | None = None, laws: Sequence[str] | None = None, rtol: float | None = None
    ) -> CheckReport:
        """Assert the laws of a linear operator: `hesse.check_operator`.

        Args:
            A, laws, rtol: as there.
            level: other than the session's.

        Returns:
            The report.

        Raises:
            WrongDerivativeError: an `AssertionError` with the report.
        """
        level = level or self.level
        run = partial(check_operator, A, level=level, laws=laws, rtol=rtol, generator=self.generator)
        return self._confirmed(run, level)

    def __call__(self, law: Law) -> None:
        """Assert a law, a case of `parametrize_laws`.

        Args:
            law: the case.

        Raises:
            WrongDerivativeError: an `AssertionError` with the report.
        """
        self.report = law.check(level=self.level, generator=self.generator, timeout=self.timeout)
        require(self.report, f"'{law.name}'")

    def _confirmed(self, run: Callable[[], CheckReport], level: Level) -> CheckReport:
        self.report = report = run_check(run, level=level, timeout=self.timeout)
        require(report, report.name)
        return report
