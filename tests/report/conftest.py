"""Tests time one gradient only briefly."""

from __future__ import annotations

import pytest

from hesse.report import validate


@pytest.fixture(autouse=True, scope="session")
def _brief_timing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validate, "_TIMING_SECONDS", 0.01)
        yield
