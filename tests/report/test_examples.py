"""The examples train, load and hand over what the report needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hesse.report import load_target

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    with torch.random.fork_rng():
        yield
    for name in ("digits", "saved_model"):
        sys.modules.pop(name, None)


def accuracy(model, data) -> float:
    batches = data if isinstance(data, list) else [data]
    right = [(model(x).argmax(1) == y).float() for x, y in batches]
    return torch.cat(right).mean().item()


def test_lenet_learns_the_digits_and_a_saved_one_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_target(f"{EXAMPLES / 'digits.py'}:lenet")
    assert not trained.model.training
    assert len(trained.data[1]) == 360
    assert accuracy(trained.model, trained.data) > 0.95
    torch.save(trained.model.state_dict(), tmp_path / "model.pt")
    monkeypatch.setenv("MODEL", str(tmp_path / "model.pt"))
    loaded = load_target(f"{EXAMPLES / 'saved_model.py'}:load")
    assert [len(y) for _, y in loaded.data] == [120, 120, 120]
    assert accuracy(loaded.model, loaded.data) == pytest.approx(accuracy(trained.model, trained.data))
