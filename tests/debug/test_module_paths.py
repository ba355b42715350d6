"""Paths of running modules: relative to the outermost, without wrappers, also after errors and on other threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from hesse.debug.module_paths import ModulePaths, bare


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([nn.Sequential(nn.ReLU(), self.stem)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](self.stem(x))


def test_paths_follow_calls() -> None:
    seen: list[str] = []
    paths = ModulePaths(seen.append)
    net, loss = Outer(), nn.MSELoss()
    with paths.following():
        loss(net(torch.ones(1, 2)), torch.ones(1, 2))
    calls = ["Outer", "stem", "Outer", "blocks.0", "blocks.0.0", "blocks.0", "stem", "blocks.0", "Outer", "", "MSELoss", ""]
    assert seen == calls
    assert paths.roots == [net, loss]
    net(torch.ones(1, 2))
    assert seen == calls


def test_a_module_that_raises_is_left() -> None:
    seen: list[str] = []
    net = Outer()
    with pytest.raises(RuntimeError), ModulePaths(seen.append).following():
        net(torch.ones(1, 3))
    assert seen[-1] == ""


def test_other_threads_are_not_followed() -> None:
    seen: list[str] = []
    net = Outer()
    with ModulePaths(seen.append).following():
        thread = threading.Thread(target=net, args=(torch.ones(1, 2),))
        thread.start()
        thread.join()
    assert seen == []


def test_wrappers_have_no_name() -> None:
    assert [bare(path) for path in ("module.fc.weight", "_orig_mod.module.fc", "module", "fc.module.x")] == [
        "fc.weight", "fc", "", "fc.module.x"
    ]  # fmt: skip
