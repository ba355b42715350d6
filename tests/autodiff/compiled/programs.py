"""The suite of derivative programs: what users write, small; every mode of `hesse.grad` must be right on all of them."""

from __future__ import annotations

from . import programs_control, programs_nested, programs_networks, programs_structures, programs_tensors
from .suite import FLAGS, REGISTERED, Draw, Program

_MODULES = (programs_control, programs_nested, programs_networks, programs_structures, programs_tensors)

PROGRAMS: tuple[Program, ...] = tuple(REGISTERED)
BY_NAME: dict[str, Program] = {program.name: program for program in PROGRAMS}

__all__ = ["BY_NAME", "FLAGS", "PROGRAMS", "Draw", "Program"]
