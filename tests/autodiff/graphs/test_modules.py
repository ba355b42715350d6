"""Whose call is running: paths of nested, repeated, shared and unnamed modules; no hook left."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from hesse.autodiff.graphs.modules import ModuleCalls, ModulePaths, bare


class Inner(nn.Module):
    def __init__(self, seen: list[str], calls: list[ModuleCalls]) -> None:
        super().__init__()
        self.seen, self.calls = seen, calls

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.calls[0].here)
        return x


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.shared = nn.Sequential(inner), inner
        self.loose = [Inner(inner.seen, inner.calls)]  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.first(x))
        return self.loose[0](self.shared(x))


def test_paths_of_nested_repeated_shared_and_unnamed_modules() -> None:
    seen: list[str] = []
    known: list[ModuleCalls] = []
    outer = Outer(Inner(seen, known))
    known.append(ModuleCalls({"model": outer}))
    with known[0].watching():
        outer(torch.ones(2))
    assert seen == ["model.first.0", "model.first#2.0", "model.first.0#2", "model.Inner"]
    assert list(known[0].texts) == [
        "model", "model.first", "model.first.0", "model.first#2", "model.first#2.0", "model.first.0#2", "model.Inner",
    ]  # fmt: skip
    assert known[0].here == ""


def test_a_module_that_nobody_named_is_called_by_its_class() -> None:
    calls = ModuleCalls({})
    first, second = nn.Linear(2, 3), nn.Linear(3, 2)
    with calls.watching():
        second(first(torch.ones(4, 2)))
    assert calls.texts == {
        "Linear": "Linear(in_features=2, out_features=3, bias=True)",
        "Linear_2": "Linear(in_features=3, out_features=2, bias=True)",
    }


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("on purpose")


class Careful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.failing = Failing()

    def forward(self, x: Tensor) -> str:
        with pytest.raises(ValueError, match="on purpose"):
            self.failing(x)
        return "went on"


def test_a_call_that_raises_is_left_and_no_hook_remains() -> None:
    before = (dict(hooks._global_forward_hooks), dict(hooks._global_forward_pre_hooks))
    careful, calls = Careful(), ModuleCalls({})
    here: list[str] = []
    careful.register_forward_hook(lambda *_: here.append(calls.here))
    with pytest.raises(ValueError, match="on purpose"), calls.watching():
        careful(torch.ones(1))
        careful.failing(torch.ones(1))
    assert here == [""]  # the module's own hooks run after the global ones, by which its call is over
    assert (dict(hooks._global_forward_hooks), dict(hooks._global_forward_pre_hooks)) == before


def test_other_threads_are_not_followed() -> None:
    calls = ModuleCalls({})
    with calls.watching():
        thread = threading.Thread(target=nn.Linear(2, 3), args=(torch.ones(1, 2),))
        thread.start()
        thread.join()
    assert calls.texts == {}


def test_the_owner_of_a_parameter_is_the_innermost_call_that_has_it() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    calls, owners = ModuleCalls({"": model}), []
    inner = model[0]
    assert isinstance(inner, nn.Sequential)
    inner[0].register_forward_pre_hook(lambda *_: owners.extend(map(calls.owner, ("0.0", "0", "", "0.0.weights"))))
    with calls.watching():
        model(torch.ones(1, 2))
    assert owners == ["0.0", "0", "", "0.0"]
    assert (calls.nearest("0.0.weights"), calls.nearest("1.2"), calls.nearest("0")) == ("0.0", "", "0")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([nn.Sequential(nn.ReLU(), self.stem)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](self.stem(x))


def test_paths_follow_calls() -> None:
    seen: list[str] = []
    paths = ModulePaths(seen.append)
    net, loss = Net(), nn.MSELoss()
    with paths.watching():
        loss(net(torch.ones(1, 2)), torch.ones(1, 2))
    calls = ["Net", "stem", "Net", "blocks.0", "blocks.0.0", "blocks.0", "stem", "blocks.0", "Net", "", "MSELoss", ""]
    assert seen == calls
    assert paths.roots == [net, loss]
    net(torch.ones(1, 2))
    assert seen == calls


def test_a_module_that_raises_is_left() -> None:
    seen: list[str] = []
    net = Net()
    with pytest.raises(RuntimeError), ModulePaths(seen.append).watching():
        net(torch.ones(1, 3))
    assert seen[-1] == ""


def test_paths_on_other_threads_are_not_followed() -> None:
    seen: list[str] = []
    net = Net()
    with ModulePaths(seen.append).watching():
        thread = threading.Thread(target=net, args=(torch.ones(1, 2),))
        thread.start()
        thread.join()
    assert seen == []


def test_wrappers_have_no_name() -> None:
    assert [bare(path) for path in ("module.fc.weight", "_orig_mod.module.fc", "module", "fc.module.x")] == [
        "fc.weight", "fc", "", "fc.module.x"
    ]  # fmt: skip
