"""The checkers that are compared: each is called with a program, and says what it complains of, or nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError, gradcheck, gradgradcheck

from benchmarks.checks.bug import Program

TITLES = {
    "hesse_quick": "hesse, quick",
    "hesse_full": "hesse, full, isolated",
    "gradcheck": "gradcheck",
    "gradcheck_fast": "gradcheck, fast mode",
    "gradcheck_forward": "gradcheck, forward mode too",
    "gradcheck_batched": "gradcheck, batched too",
    "gradgradcheck": "gradcheck and gradgradcheck",
    "jax": "JAX check_grads",
    "hips": "HIPS check_grads",
}
OWN_ENVIRONMENT = ("jax", "hips")


class CannotRun(Exception):
    """The checker has no means for such a program."""


def complaint(way: str, program: Program) -> str | None:
    """What the checker `way` says against the program in its default settings: None if it finds it correct."""
    return WAYS[way](program)


def leaves_of(program: Program) -> tuple[Callable[..., Any], list[Tensor]]:
    """The program as a function of tensors alone, and these: its inputs, then a module's parameters."""
    inputs = [t.detach().clone() for t in program.inputs]
    if not isinstance(program.call, nn.Module):
        return program.call, inputs
    module = program.call
    names = [name for name, _ in module.named_parameters()]
    parameters = [p.detach().clone() for p in module.parameters()]

    def call(*leaves: Tensor) -> Any:
        own = dict(zip(names, leaves[len(inputs) :], strict=True))
        return torch.func.functional_call(module, own, tuple(leaves[: len(inputs)]), tie_weights=True)

    return call, inputs + parameters


def _hesse(level: str) -> Callable[[Program], str | None]:
    def check(program: Program) -> str | None:
        from hesse.check.derivatives import check_derivatives
        from hesse.check.isolated import isolated
        from hesse.check.module import check_module

        def run() -> Any:
            if isinstance(program.call, nn.Module):
                return check_module(program.call, *program.inputs, level=level)
            return check_derivatives(lambda leaves: program.call(*leaves), program.inputs, level=level)

        report = run() if level == "quick" else isolated(run, level=level)
        if report.ok:
            return None
        said = [f"{f.check} {f.leaf}: {f.diagnosis}" for f in report.findings[:3]]
        undecided = [f"{c.check} {c.leaf}: {c.verdict}" for c in report.compared if c.verdict != "ok"]
        return "; ".join(said or undecided) or f"verdict {report.verdict}"

    return check


def _gradcheck(*, second: bool = False, **options: bool) -> Callable[[Program], str | None]:
    def check(program: Program) -> str | None:
        f, leaves = leaves_of(program)
        leaves = [t.requires_grad_(t.is_floating_point() or t.is_complex()) for t in leaves]
        try:
            gradcheck(f, leaves, **options)
            if second:
                gradgradcheck(f, leaves)
        except GradcheckError as error:
            return str(error).strip().splitlines()[0]
        return None

    return check


def _jax(program: Program) -> str | None:
    from benchmarks.checks.adapter import jax_complaint

    return jax_complaint(program)


def _hips(program: Program) -> str | None:
    from benchmarks.checks.adapter import hips_complaint

    return hips_complaint(program)


WAYS: dict[str, Callable[[Program], str | None]] = {
    "hesse_quick": _hesse("quick"),
    "hesse_full": _hesse("full"),
    "gradcheck": _gradcheck(),
    "gradcheck_fast": _gradcheck(fast_mode=True),
    "gradcheck_forward": _gradcheck(check_forward_ad=True),
    "gradcheck_batched": _gradcheck(check_batched_grad=True),
    "gradgradcheck": _gradcheck(second=True),
    "jax": _jax,
    "hips": _hips,
}


def warm_up(way: str) -> None:
    """Import what the checker needs, so that no case pays for it; no derivative is taken here, before processes fork."""
    names = ["torch.fx.experimental.symbolic_shapes"]  # by torch, at the first use of vmap
    names += {"jax": ["jax.test_util"], "hips": ["autograd.test_util"]}.get(way, [])
    if way.startswith("hesse"):
        names += ["torch._decomp.decompositions_for_jvp", "hesse", "hesse.check.isolated", "hesse.check.module"]
    for name in names:
        importlib.import_module(name)
