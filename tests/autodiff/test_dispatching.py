"""Watching ops neither imports PyTorch's compiler nor is compiled by it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from hesse.autodiff.events.watching import NonFiniteEvent, watching

PROGRAM = """
import sys, torch
from hesse.autodiff.events.watching import watching
with watching(print):
    torch.ones(3).log().sum()
print("torch._dynamo" in sys.modules)
"""


def test_the_compiler_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_compiled_functions_do_not_compile_the_mode(caplog: pytest.LogCaptureFixture) -> None:
    compiled = torch.compile(lambda x: x.log().sum(), backend="eager")
    events: list[NonFiniteEvent] = []
    with caplog.at_level(logging.WARNING), watching(events.append):
        assert compiled(torch.zeros(3)) == -torch.inf
    assert [event.op for event in events] == ["aten.log.default", "aten.sum.default"]
    assert "raph break" not in caplog.text
