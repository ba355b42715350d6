"""What functions read: every change that counts is noticed by its path, and what they do themselves is not."""

from __future__ import annotations

import functools
import types
from collections import UserDict
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hesse.core.errors import DataError
from hesse.core.held import values
from hesse.core.watch import Watch

ASKED = ("It stays.", "make a new one")
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")


class Parts(nn.Module):
    """Buffers of all kinds, a shared module, a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.BatchNorm1d(3, eps=float("nan")), nn.Dropout(0.5)])
        self.again = self.inner[0]
        buffers = {
            "count": torch.tensor(3),
            "mask": torch.tensor([True, False, True]),
            "low": torch.ones(4, 3).bfloat16(),
            "waves": torch.ones(2, dtype=torch.complex64),
            "none": torch.zeros(0, 3),
            "thin": torch.eye(3).to_sparse(),
            "rows": torch.eye(4).to_sparse_csr(),
            "large": torch.zeros(2**18 + 1, dtype=torch.float32),
            "seen": torch.zeros(2, 2),
            "nowhere": torch.empty(3, device="meta"),
            "moved": torch.empty(2, device="meta"),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)
        self.register_buffer("missing", None)
        self.calls, self.weight = 0, nn.Parameter(torch.ones(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def refuse(watch: Watch, found: str) -> None:
    with pytest.raises(DataError, match=found) as caught:
        watch.check(*ASKED)
    assert caught.value.asked == "It stays." and caught.value.remedy == "make a new one"


def test_what_does_not_count() -> None:
    parts = Parts()
    watch = Watch(parts=parts, number=3, nothing=None, kind=int, built=torch.relu)
    parts(torch.ones(2))
    parts.requires_grad_(False).register_forward_hook(lambda *_: None)
    parts.weight.grad = torch.ones(2, 3)
    parts.seen.copy_(parts.seen.clone())
    parts.register_buffer("mask", parts.mask.clone())
    watch.check(*ASKED)


def test_a_buffer_that_got_memory() -> None:
    parts = Parts()
    watch = Watch(parts=parts)
    parts.moved = torch.zeros(2)
    refuse(watch, r"buffers 'parts.moved' that appeared")


@pytest.mark.parametrize("name", ["count", "mask", "low", "waves", "thin", "large", "seen"])
def test_buffers(name: str) -> None:
    parts = Parts()
    watch, buffer = Watch(parts=parts), getattr(parts, name)
    values = buffer._values() if buffer.is_sparse else buffer
    last = values.flatten()[-1:] if values.ndim else values
    last.data.copy_(~last if last.dtype == torch.bool else last + 1)  # past the version counter
    refuse(watch, rf"buffers 'parts\.{name}'")


CHANGES: list[tuple[Callable[[Any], object], str]] = [
    (lambda parts: setattr(parts, "low", parts.low.reshape(3, 4)), r"buffers 'parts\.low'"),
    (lambda parts: setattr(parts, "low", parts.low.float()), r"buffers 'parts\.low'"),
    (lambda parts: parts.register_buffer("missing", torch.ones(1)), r"found: buffers 'parts\.missing' that appeared"),
    (lambda parts: parts.register_buffer("new", torch.ones(1)), r"found: buffers 'parts\.new' that appeared"),
    (lambda parts: delattr(parts, "count"), r"missing buffers 'parts\.count'"),
    (lambda parts: parts.inner.__setitem__(1, nn.Dropout(0.5)), r"'parts\.inner\.1' is a Dropout now, and was a Dropout"),
    (lambda parts: setattr(parts, "again", nn.BatchNorm1d(3)), r"'parts\.again' is a BatchNorm1d now"),
    (lambda parts: parts.inner.append(nn.ReLU()), r"'parts\.inner\.2' is a ReLU now, and was missing"),
    (lambda parts: parts.inner.__delitem__(1), r"'parts\.inner\.1' is missing now"),
    (lambda parts: setattr(parts.inner[1], "p", 0.25), r"'parts\.inner\.1\.p' is 0.25 now, and was 0.5"),
    (lambda parts: setattr(parts.inner[0], "momentum", None), r"'parts\.inner\.0\.momentum' is None now, and was 0.1"),
    (lambda parts: setattr(parts.inner[1], "p", torch.ones(())), r"'parts\.inner\.1\.p' is no plain value now, and was 0.5"),
    (lambda parts: parts.inner[0].num_batches_tracked.add_(1), r"numbers in the buffers 'parts\.inner\.0\.num_batches"),
    (lambda parts: parts.inner[1].eval(), r"'parts\.inner\.1\.training' is False now"),
    (lambda parts: setattr(parts, "weight", nn.Parameter(parts.weight.detach().clone())), r"'parts\.weight'"),
    (lambda parts: setattr(parts.weight, "data", parts.weight.detach().clone()), r"'parts\.weight'"),
    (lambda parts: parts.weight.detach().add_(1), r"'parts\.weight' was written to"),
]


@pytest.mark.parametrize("case", range(len(CHANGES)))
def test_modules_options_and_parameters(case: int) -> None:
    change, found = CHANGES[case]
    parts = Parts()
    watch = Watch(parts=parts)
    change(parts)
    refuse(watch, found)


class Loss:
    """An object with a tensor, one that it writes to, and one that it replaces."""

    def __init__(self) -> None:
        self.weight, self.total, self.last = torch.ones(2), torch.zeros(1), torch.zeros(1)

    def __call__(self, x: Tensor) -> Tensor:
        self.total += 1
        self.last = x * self.weight
        return self.last

    def method(self, x: Tensor) -> Tensor:
        return self(x)


def test_what_functions_write_to_themselves_is_forgotten() -> None:
    for wrap in (lambda loss: loss, lambda loss: loss.method, functools.partial):
        loss = Loss()
        read: Any = wrap(loss)
        watch = Watch(loss=read)
        read(torch.ones(2))
        watch.settle()
        read(torch.ones(2))
        watch.check(*ASKED)
        loss.weight.add_(1)
        refuse(watch, "weight' was written to")


def test_functions_that_refer_to_themselves() -> None:
    factor = torch.ones(2)

    def power(x: Tensor, n: int) -> Tensor:
        return x if n == 0 else power(x, n - 1) * factor

    watch = Watch(f=power)
    watch.check(*ASKED)
    factor = torch.ones(2)
    refuse(watch, r"'f\.factor' was written to or replaced")


def test_tensors_of_inference_count_no_versions() -> None:
    with torch.inference_mode():
        weight = torch.ones(2)
    watch = Watch(f=functools.partial(torch.add, other=weight))
    watch.check(*ASKED)


def test_new_attributes_are_no_change() -> None:
    parts = Parts()
    watch = Watch(parts=parts)
    parts.inner[1].tag, parts.inner[0].calls, parts.tag = "x", (1, 2), "y"
    watch.check(*ASKED)
    parts.inner[1].inplace = True
    refuse(watch, r"'parts\.inner\.1\.inplace' is True now")


class OwnNorm(nn.BatchNorm1d):
    """Reads what torch's class does not read in eval mode."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.num_batches_tracked


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True), nn.SyncBatchNorm(3)])
def test_what_torch_does_not_read_in_eval_mode_is_no_change(norm: Any) -> None:
    x = torch.randn(4, 3, 5)
    model: Any = nn.Sequential(norm, nn.Dropout(0.5), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)).eval()
    watch, before = Watch(model=model), model(x)
    for part in model[1:]:
        part.p = 0.25
    for momentum in (0.9, None):
        norm.momentum = momentum
        norm.num_batches_tracked.add_(3)
        assert torch.equal(model(x), before)
        watch.check(*ASKED)
    model[1].train()
    refuse(watch, r"'model\.1\.training' is True now")
    model[1].eval()
    norm.running_mean.add_(1)
    refuse(watch, r"numbers in the buffers 'model\.0\.running_mean'")


def test_classes_derived_from_those_of_torch_may_read_all() -> None:
    norm = OwnNorm(3).eval()
    watch = Watch(norm=norm)
    norm.num_batches_tracked.add_(1)
    refuse(watch, r"numbers in the buffers 'norm\.num_batches_tracked'")


def test_buffers_of_the_first_run_are_watched_from_then_on() -> None:
    parts = Parts()
    watch = Watch(parts=parts)
    parts.register_buffer("pos", torch.ones(3))
    watch.settle()
    watch.check(*ASKED)
    watch.check(*ASKED)
    parts.pos[1] = 2
    refuse(watch, r"numbers in the buffers 'parts\.pos'")
    parts.pos[1] = 1
    parts.register_buffer("later", torch.ones(3))
    refuse(watch, r"buffers 'parts\.later' that appeared")


def test_buffers_of_a_later_run_are_watched_from_then_on() -> None:
    parts = Parts()
    watch = Watch(parts=parts)
    with watch.running():
        parts.register_buffer("pos", torch.ones(3))
        parts.seen.add_(1)
    refuse(watch, r"numbers in the buffers 'parts\.seen'\n")
    parts.seen.sub_(1)
    watch.check(*ASKED)
    parts.pos[1] = 2
    refuse(watch, r"numbers in the buffers 'parts\.pos'\n")


def test_numbers_that_change_before_the_first_run_ends_are_refused() -> None:
    parts = Parts()
    watch = Watch(parts=parts)
    parts.register_buffer("pos", torch.ones(3))
    parts.seen.add_(1)
    watch.settle()
    refuse(watch, r"numbers in the buffers 'parts\.seen'\n")


def test_only_the_first_run_of_a_kind_shows_what_it_writes_to() -> None:
    loss = Loss()
    watch = Watch(loss=loss)
    with watch.running("product"):
        loss.total += 1
    watch.check(*ASKED)
    with watch.running("product"):
        loss.last = torch.ones(1)
    refuse(watch, "last' was written to")
    with watch.running("mass"):  # it had changed before
        loss.last = torch.ones(1)
    refuse(watch, "last' was written to")
    loss.weight.add_(1)
    with watch.running("diagonal"):
        pass
    refuse(watch, "(last|weight)' was written to")


class Weighted:
    """A loss with plain options, some in containers, and what it writes down as it runs."""

    def __init__(self) -> None:
        self.scale, self.name, self.parts = 2.0, "mean", {"first": 1.0, "second": [3, torch.ones(2)]}
        self.calls, self.rows, self.seen = 0, 4, [0.0] * 101

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.rows, self.seen[0] = len(x), float(x.sum())
        return self.combined(x * self.scale)

    def combined(self, x: Tensor) -> Tensor:
        return x * self.parts["first"] if self.name == "mean" else x

    def method(self, x: Tensor) -> Tensor:
        return self(x)


VALUES: list[tuple[Callable[[Any], object], str]] = [
    (lambda loss: setattr(loss, "scale", 3.0), r"scale' is 3\.0 now, and was 2\.0"),
    (lambda loss: setattr(loss, "scale", 2), r"scale' is 2 now, and was 2\.0"),
    (lambda loss: setattr(loss, "scale", torch.ones(())), r"scale' is None now, and was 2\.0"),
    (lambda loss: setattr(loss, "name", "sum"), r"name' is 'sum' now, and was 'mean'"),
    (lambda loss: loss.parts.update(first=5.0), r"parts\.first' is 5\.0 now, and was 1\.0"),
    (lambda loss: loss.parts.pop("first"), r"parts\.first' is None now, and was 1\.0"),
    (lambda loss: loss.parts["second"].insert(0, 1), r"parts\.second\.1' was written to or replaced"),
    (lambda loss: loss.parts["second"].__setitem__(0, 4), r"parts\.second\.0' is 4 now, and was 3"),
    (lambda loss: loss.parts["second"][1].add_(1), r"parts\.second\.1' was written to or replaced"),
]


WRAPS: list[Callable[[Any], Any]] = [
    lambda loss: loss,
    lambda loss: loss.method,
    functools.partial,
    lambda loss: lambda x: loss(x),
]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("case", range(len(VALUES)))
def test_values_of_objects(case: int, wrap: Callable[[Any], Any]) -> None:
    change, found = VALUES[case]
    loss = Weighted()
    read = wrap(loss)
    watch = Watch(loss=read)
    with watch.running("product"):
        read(torch.ones(4, 2))
    watch.check(*ASKED)
    change(loss)
    refuse(watch, found)


def test_values_of_functions() -> None:
    scale, other, parts = float("nan"), 1j, {"a": 1.0}

    def loss(x: Tensor, power: int = 2, *, shift: float = 0.5) -> Tensor:
        return (x**power + shift) * scale * other * parts["a"]

    watch = Watch(loss=loss)
    watch.check(*ASKED)
    loss.__defaults__ = (3,)
    refuse(watch, r"'loss\.power' is 3 now, and was 2")
    loss.__defaults__ = (2,)
    loss.__kwdefaults__["shift"] = 0.25
    refuse(watch, r"'loss\.shift' is 0\.25 now, and was 0\.5")
    loss.__kwdefaults__["shift"] = 0.5
    watch.check(*ASKED)
    scale = 1.0
    refuse(watch, r"'loss\.scale' is 1\.0 now, and was nan")
    scale, parts["a"] = float("nan"), 2.0
    refuse(watch, "'loss.(scale|parts.a)' is")


@pytest.mark.parametrize("kinds", [("product", "product"), ("", ""), ("operator", "product")])
def test_values_that_a_run_changes_are_watched_no_longer(kinds: tuple[str, str]) -> None:
    loss = Weighted()
    watch = Watch(loss=loss)
    with watch.running(kinds[0]):
        loss(torch.ones(4, 2))  # as many rows as before
    with watch.running(kinds[1]):
        loss(torch.ones(3, 2))
    watch.check(*ASKED)
    loss.scale = 1.0
    with watch.running(kinds[1]):  # it had changed before
        loss(torch.ones(4, 2))
    refuse(watch, "'loss.scale' is 1.0 now")


def test_long_lists_are_data() -> None:
    many = [1.0] * 101
    watch = Watch(loss=lambda x: x * many[0])
    many[0] = 2.0
    watch.check(*ASKED)


class Trainer:
    """Holds more than its loss reads."""

    def __init__(self) -> None:
        self.epoch, self.scale, self.config, self.step = 0, 2.0, types.SimpleNamespace(shift=1.0, name="a"), 0

    @property
    def factor(self) -> float:
        return self.scale

    def loss(self, x: Tensor) -> Tensor:
        self.step += 1
        return self.shifted(x) * self.factor

    def shifted(self, x: Tensor) -> Tensor:
        return x + self.config.shift


METHODS: list[Callable[[Any], Any]] = [
    lambda one: one.loss,
    lambda one: lambda x: one.loss(x),
    lambda one: lambda x: one.shifted(x),
]


@pytest.mark.parametrize("wrap", METHODS)
def test_of_objects_those_attributes_count_that_the_code_names(wrap: Callable[[Any], Any]) -> None:
    one = Trainer()
    read = wrap(one)
    watch = Watch(loss=read)
    with watch.running("product"):
        read(torch.ones(2))
    one.epoch, one.config.name = 1, "b"
    watch.check(*ASKED)
    one.config.shift = 2.0
    refuse(watch, r"config\.shift' is 2\.0 now, and was 1\.0")


def test_attributes_that_properties_and_methods_name() -> None:
    one = Trainer()
    watch = Watch(loss=lambda x: one.loss(x))
    one.scale = 3.0
    refuse(watch, r"'loss\.one\.scale' is 3\.0 now")


class Kind(Enum):
    """Two."""

    FIRST, SECOND = 1, 2


def test_other_plain_values() -> None:
    held: dict[Any, Any] = {"array": np.ones(3), "kind": Kind.FIRST, "number": np.float32(1), "raw": b"x", 1: 2.0, "1": 3.0}
    others = {"array": np.zeros(3), "kind": Kind.SECOND, "number": np.float32(2), "raw": b"y", 1: 3.0, "1": 2.0}

    def loss(x: Tensor) -> Tensor:
        return x * len(held)

    watch = Watch(loss=loss)
    for name, other in others.items():
        before, held[name] = held[name], other
        refuse(watch, rf"'loss\.held\.{name if isinstance(name, str) else '.1.'}' is .* now")
        held[name] = before
    held["array"][1] = 7
    refuse(watch, r"'loss\.held\.array'")


def test_lists_that_grow_too_long_are_data_from_then_on() -> None:
    log = [0.0] * 100
    watch = Watch(loss=lambda x: x * log[0])
    log.append(1.0)
    watch.check(*ASKED)


def test_nested_lists_are_looked_at_within_limits() -> None:
    deep = [[[1.0] * 100 for _ in range(100)] for _ in range(100)]
    watch = Watch(loss=lambda x: x * deep[0][0][0])
    assert len(values({"loss": lambda x: x * deep[0][0][0]})) <= 1000
    watch.check(*ASKED)


def test_mappings_that_read_when_asked_are_let_alone() -> None:
    class Lazy(UserDict[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            raise AssertionError("read")

    lazy = Lazy({"a": torch.ones(2)})
    watch = Watch(loss=lambda x: x * lazy["a"])
    watch.check(*ASKED)


def test_functions_that_read_alike() -> None:
    weight = torch.ones(2)

    def made(weight: Tensor, power: int) -> Any:
        return lambda x, shift=0.5: weight * x**power + shift

    assert Watch(loss=made(weight, 2)).is_over({"loss": made(weight, 2)})
    assert not Watch(loss=made(weight, 2)).is_over({"loss": made(weight, 3)})
    assert not Watch(loss=made(weight, 2)).is_over({"loss": made(weight.clone(), 2)})
    assert not Watch(loss=made(weight, 2)).is_over({"loss": lambda x: x})
    one, other = Trainer(), Trainer()
    assert Watch(loss=one.loss).is_over({"loss": one.loss}) and not Watch(loss=one.loss).is_over({"loss": other.loss})
