"""Laws as cases of a parametrized test: of operators, of modules and of functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hesse.check import CheckReport, check_derivatives
from hesse.check.functions.case import Level
from hesse.check.module import check_module
from hesse.check.operator import check_operator
from hesse.check.operators.run import OPERATOR_LAWS
from hesse.core import tree
from hesse.core.errors import MissingExtraError, StructureError
from hesse.core.tree import Tree
from hesse.testing.confirmed import require, run_check

_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}
_DTYPES = (torch.float64, torch.float32)


class Check(Protocol):
    """What a law runs."""

    def __call__(self, *, level: Level, generator: torch.Generator | None) -> CheckReport: ...


@dataclass(frozen=True)
class Law:
    """Something that a check can confirm; one case of a parametrized test.

    Attributes:
        name: of the case.
        run: the check.
    """

    name: str
    run: Check

    def check(
        self, *, level: Level = "quick", generator: torch.Generator | None = None, timeout: float | None = None
    ) -> CheckReport:
        """Run the check.

        Args:
            level, generator: as for the check.
            timeout: seconds of silence after which a run in a process of its own counts as hanging; None: no such process.

        Returns:
            The report.
        """
        return run_check(partial(self.run, level=level, generator=generator), name=self.name, level=level, timeout=timeout)

    def __call__(
        self, *, level: Level = "quick", generator: torch.Generator | None = None, timeout: float | None = None
    ) -> None:
        """Raise unless the check confirms the law.

        Args:
            level, generator, timeout: as for `check`.

        Raises:
            WrongDerivativeError: an `AssertionError` with the report.
        """
        __tracebackhide__ = True
        require(self.check(level=level, generator=generator, timeout=timeout), f"'{self.name}'")

    def __str__(self) -> str:
        return self.name


def operator_laws(
    make: Callable[[], Any], *, laws: Sequence[str] = OPERATOR_LAWS, rtol: float | None = None, name: str = ""
) -> tuple[Law, ...]:
    """The laws of linear operators, one case each.

    Args:
        make: makes the operator, anew for each case; nothing is made when tests are collected.
        laws: some of `OPERATOR_LAWS`.
        rtol: as for `check_operator`.
        name: of the operator, in front of the cases' names, where a test has several.

    Returns:
        One law for each name.
    """

    def run(law: str, *, level: Level, generator: torch.Generator | None) -> CheckReport:
        return check_operator(make(), level=level, laws=[law], rtol=rtol, generator=generator)

    return tuple(Law(_named(name, law), partial(run, law)) for law in laws)


def function_laws(
    f: Callable[[Any], Any],
    x: Tree,
    *,
    dtypes: Sequence[torch.dtype] = _DTYPES,
    devices: Sequence[str] = ("cpu",),
    name: str = "",
) -> tuple[Law, ...]:
    """The derivatives of a function at a point, one case for each type and device.

    Args:
        f: of one tree.
        x: the point; its floating-point leaves are converted.
        dtypes: real floating types; complex leaves take the complex type of the same precision.
        devices: where the point is moved.
        name: of the function, in front of the cases' names, where a test has several.

    Returns:
        One law for each type on each device, which is `check_derivatives` there.
    """

    def run(dtype: torch.dtype, device: str, *, level: Level, generator: torch.Generator | None) -> CheckReport:
        return check_derivatives(f, _moved(x, dtype, device), level=level, generator=generator)

    return _cases(run, dtypes, devices, name)


def module_laws(
    make: Callable[[], nn.Module],
    *inputs: Tree,
    named: Mapping[str, Tree] | None = None,
    dtypes: Sequence[torch.dtype] = _DTYPES,
    devices: Sequence[str] = ("cpu",),
    name: str = "",
) -> tuple[Law, ...]:
    """A module's derivatives and behavior, one case for each type and device.

    Args:
        make: makes the module, anew for each case.
        *inputs: of its call; their floating-point leaves are converted, as the module is.
        named: keyword inputs.
        dtypes: real floating types.
        devices: where both are moved.
        name: of the module, in front of the cases' names, where a test has several.

    Returns:
        One law for each type on each device, which is `check_module` there.
    """

    def run(dtype: torch.dtype, device: str, *, level: Level, generator: torch.Generator | None) -> CheckReport:
        given = [_moved(part, dtype, device) for part in inputs]
        keywords = {key: _moved(part, dtype, device) for key, part in (named or {}).items()}
        return check_module(make().to(device=device, dtype=dtype), *given, level=level, generator=generator, **keywords)

    return _cases(run, dtypes, devices, name)


def parametrize_laws(laws: Iterable[Law], argument: str = "law") -> Any:
    """The decorator that runs a pytest function once for each law, each under the law's name.

    Args:
        laws: from `operator_laws`, `module_laws`, `function_laws`, or your own.
        argument: the function's argument that takes the law.

    Returns:
        ``pytest.mark.parametrize``.

    Raises:
        MissingExtraError: pytest is not installed.
        StructureError: no law.
    """
    try:
        import pytest
    except ImportError as error:
        raise MissingExtraError("parametrize_laws is for pytest.", "it is not installed", "pip install pytest") from error
    cases = list(laws)
    if not cases:
        raise StructureError("parametrize_laws makes one case of each law.", "no law", "pass operator_laws(make) or the like")
    return pytest.mark.parametrize(argument, cases, ids=[law.name for law in cases])


def _cases(
    run: Callable[..., CheckReport], dtypes: Sequence[torch.dtype], devices: Sequence[str], name: str
) -> tuple[Law, ...]:
    several = len(devices) > 1
    return tuple(
        Law(_named(name, str(dtype).removeprefix("torch.") + (f" on {device}" if several else "")), partial(run, dtype, device))
        for device in devices
        for dtype in dtypes
    )


def _named(name: str, case: str) -> str:
    return f"{name} {case}" if name else case


def _moved(x: Tree, dtype: torch.dtype, device: str) -> Tree:
    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_complex():
            return leaf.to(device=device, dtype=_COMPLEX.get(dtype, leaf.dtype))
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else leaf.dtype)

    return tree.map_tree(move, x)
