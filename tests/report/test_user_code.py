"""Whose exception it was, and which frames are shown."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.core.errors import DataError
from hesse.report.user_code import UserCodeError, perhaps_user_code, user_code


def user_function() -> None:
    raise KeyError("the user's own")


def test_the_traceback_starts_at_the_users_line() -> None:
    with pytest.raises(UserCodeError) as caught, user_code("calling user_function()"):
        user_function()
    text = caught.value.traceback
    assert "KeyError: \"the user's own\"" in text
    assert 'raise KeyError("the user\'s own")' in text
    assert "hesse/report/user_code.py" not in text
    assert caught.value.doing == "calling user_function()"


def test_frames_of_torch_before_the_users_line_are_left_out() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ x

    model = nn.Sequential(Broken())
    with pytest.raises(UserCodeError) as caught, user_code("computing"):
        model(torch.ones(2, 3))
    assert "return x @ x" in caught.value.traceback


def test_a_script_that_exits_is_caught_and_an_interrupt_is_not() -> None:
    with pytest.raises(UserCodeError, match="SystemExit"), user_code("running"):
        raise SystemExit(3)
    with pytest.raises(KeyboardInterrupt), user_code("running"):
        raise KeyboardInterrupt


def test_perhaps_user_code_leaves_errors_of_hesse_alone() -> None:
    with pytest.raises(DataError), perhaps_user_code("reading"):
        raise DataError("asked", "found", "remedy")


def test_perhaps_user_code_takes_exceptions_from_user_frames() -> None:
    with pytest.raises(UserCodeError, match="reading the data: KeyError"), perhaps_user_code("reading the data"):
        user_function()


def test_syntax_errors_show_the_line() -> None:
    with pytest.raises(UserCodeError) as caught, user_code("running broken.py"):
        compile("def f(:\n  pass", "broken.py", "exec")
    assert "def f(:" in caught.value.traceback
    assert "SyntaxError" in caught.value.traceback
